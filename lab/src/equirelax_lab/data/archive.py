"""Data on disk, with its checksums: .npz archives with a manifest, and SHA256SUMS for files that carry no checksum of their own.

The bytes of an archive that is written here depend only on its arrays. Its manifest (.json beside it) holds its SHA-256.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from equirelax.errors import DataError
from equirelax.files import atomic_write, sha256, write_text
from equirelax.zips import check_complete

FORMAT = 1
SUMS = "SHA256SUMS"
LEVELS = 4
"""How many folders are searched for sums, from the file's own upwards: the depth of data sets below the data root."""


def manifest_path(path: Path) -> Path:
    """The manifest of the archive `path` (.npz): the same name with .json."""
    return path.with_suffix(".json")


def write_archive(
    path: Path, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Write `arrays` to `path` (.npz) and then `manifest` beside it; return the manifest as written.

    Equal arrays give equal bytes (fixed time stamps, in the order of the mapping). `format`, `file` and `sha256` are added to the
    manifest. The manifest is written last, so an archive without one is unfinished. An older manifest is removed before the
    archive is replaced, since the new archive would look damaged beside it.
    """
    beside = manifest_path(path)
    # Both are complete before either is renamed, because the disk may be full.
    with atomic_write(beside) as note, atomic_write(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.create_system = 3  # the default depends on the operating system
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, np.asarray(array, order="C"), allow_pickle=False)
                archive.writestr(entry, buffer.getvalue())
        written = {"format": FORMAT, "file": path.name, **manifest, "sha256": sha256(temporary)}
        note.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        beside.unlink(missing_ok=True)
    return written


def read_manifest(path: Path, remedy: str) -> dict[str, Any]:
    """Read the manifest of the archive `path`. Raise `DataError`, ending in `remedy`, if it is damaged."""
    beside = manifest_path(path)
    try:
        manifest = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} has no manifest {beside.name}: writing it was not finished. {remedy}"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"The manifest {beside} cannot be read ({error}). {remedy}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "sha256" not in manifest:
        raise DataError(f"The manifest {beside} is not of format {FORMAT}. {remedy}")
    return manifest


def read_archive(path: Path, remedy: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and the manifest of the archive `path`, and compare its SHA-256 with the manifest's.

    Args:
        remedy: What to do next, at the end of every error message.

    Raises:
        DataError: The file is missing or damaged.
    """
    manifest = read_manifest(path, remedy)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}). {remedy}") from error
    _check_against(manifest, hashlib.sha256(content).hexdigest(), path, remedy)
    return load_npz(io.BytesIO(content), path, remedy), manifest


def _check_against(manifest: Mapping[str, Any], found: str, path: Path, remedy: str) -> None:
    if found != manifest["sha256"]:
        raise DataError(
            f"{path} is damaged or was changed: its SHA-256 is {found}, "
            f"its manifest says {manifest['sha256']}. {remedy}"
        )


def load_npz(
    source: Path | io.BytesIO, name: Path, remedy: str = "", keys: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz (with `keys`: only these) without unpickling anything.

    Every array that is read is compared with its CRC-32, and a file (not bytes in memory) with its manifest, if there is one,
    and with SHA256SUMS, see `check_sum`.

    Raises:
        DataError: The file, which the message calls `name`, is missing or damaged.
    """
    if isinstance(source, Path):
        check_sum(source)
        if manifest_path(source).is_file() and source.is_file():
            _check_against(read_manifest(source, remedy), sha256(source), source, remedy)
    try:
        with source.open("rb") if isinstance(source, Path) else source as file:
            with zipfile.ZipFile(file) as archive:
                check_complete(file, archive)
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files if keys is None or key in keys}
    except FileNotFoundError:
        raise DataError(f"{name} is missing. {remedy}") from None
    # Damage shows as zlib.error, NotImplementedError, RuntimeError, MemoryError, ValueError, BadZipFile, ...
    except Exception as error:
        raise DataError(
            f"{name} is not a readable .npz file, or a damaged one ({_in_words(error)}). {remedy}"
        ) from error


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def check_sum(path: Path) -> None:
    """Compare a file with every SHA256SUMS that lists it, in its folder or one above. An unlisted file passes.

    Raises:
        DataError: The file is missing or unreadable, or its SHA-256 differs.
    """
    for folder in path.absolute().parents[:LEVELS]:
        if (folder / SUMS).is_file():
            expected = _listed(folder / SUMS).get(path.absolute().relative_to(folder).as_posix())
            if expected is not None:
                _compare(path, expected, folder / SUMS)


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS for all files in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_text(folder / SUMS, "".join(lines))


def _listed(path: Path) -> dict[str, str]:
    """Map names below the folder to hexadecimal sums. Other lines are ignored."""
    try:
        state = path.stat()
        return _parsed(path, state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}). Remove it, or get it again.") from error


@functools.lru_cache(maxsize=16)
def _parsed(path: Path, changed: int, size: int) -> dict[str, str]:
    """Parse SHA256SUMS once while it does not change: a data set may have thousands of files."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    words = (line.split(maxsplit=1) for line in lines)
    # sha256sum puts a * before the names of files that it read as binary
    return {PurePosixPath(w[1].removeprefix("*")).as_posix(): w[0].lower() for w in words if len(w) == 2}


def _compare(path: Path, expected: str, where: Path) -> None:
    try:
        found = sha256(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}). Get the file again.") from error
    if found != expected:
        raise DataError(
            f"{path} is damaged or was changed: its SHA-256 is {found}, {where} says {expected}. Get the file again, or, if "
            f"it was changed on purpose, take its line out of {where}."
        )
