"""SHA256SUMS: checksums of data files that carry none of their own, as `sha256sum` writes and checks them."""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath

from equirelax.errors import DataError
from equirelax.files import sha256, write_text

SUMS = "SHA256SUMS"
LEVELS = 4
"""A file's own folder, and those above it, that are looked in: as deep as any data set lies below the data root."""


def check_sum(path: Path) -> None:
    """Compare a file with every SHA256SUMS that lists it, in its folder or one above; one that is listed nowhere passes.

    Raises:
        DataError: the file is missing or unreadable, or its SHA-256 is another one.
    """
    for folder in path.absolute().parents[:LEVELS]:
        if (folder / SUMS).is_file():
            expected = _listed(folder / SUMS).get(path.absolute().relative_to(folder).as_posix())
            if expected is not None:
                _compare(path, expected, folder / SUMS)


def write_sums(folder: Path) -> None:
    """Write the SHA256SUMS of all files in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_text(folder / SUMS, "".join(lines))


def _listed(path: Path) -> dict[str, str]:
    """Name below the folder -> hexadecimal sum; lines that are none are left out."""
    try:
        state = path.stat()
        return _parsed(path, state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}). Remove it, or get it anew.") from error


@functools.lru_cache(maxsize=16)
def _parsed(path: Path, changed: int, size: int) -> dict[str, str]:
    """Parsed once as long as it stays as it is: a data set may be of thousands of files."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    words = (line.split(maxsplit=1) for line in lines)
    # sha256sum puts a * before names of files that it read as binary
    return {PurePosixPath(w[1].removeprefix("*")).as_posix(): w[0].lower() for w in words if len(w) == 2}


def _compare(path: Path, expected: str, where: Path) -> None:
    try:
        found = sha256(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}). Get the file anew.") from error
    if found != expected:
        raise DataError(
            f"{path} is damaged or was changed: its SHA-256 is {found}, {where} says {expected}. Get the file anew, or, if "
            f"it was changed on purpose, take its line out of {where}."
        )
