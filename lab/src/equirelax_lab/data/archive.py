"""Data on disk: an .npz whose bytes depend on its arrays alone, and its SHA-256 in a JSON manifest."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equirelax.errors import DataError
from equirelax.files import atomic_write, sha256
from equirelax.zips import check_complete
from equirelax_lab.data.sums import check_sum

FORMAT = 1


def manifest_path(path: Path) -> Path:
    """Where the manifest of the archive `path` (.npz) stands: the same name with .json."""
    return path.with_suffix(".json")


def write_archive(
    path: Path, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Write `arrays` to `path` (.npz) and then `manifest` beside it; returns the manifest as written.

    Equal arrays give equal bytes (fixed time stamps, order of the mapping). `format`, `file` and `sha256`
    are added to the manifest. The manifest is written last: an archive without one is unfinished. An older one is
    removed before the archive is replaced: with it, the new archive would pass for a damaged one.
    """
    beside = manifest_path(path)
    # Both are complete before either is renamed, for the disk may be full.
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
    """The manifest of the archive `path`. Raises `DataError`, ending in `remedy`, if it is damaged."""
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
    """Arrays and manifest of the archive `path`, after its SHA-256 was compared with the manifest's.

    `remedy` ends every error message: what to do next. Raises `DataError` for a missing or damaged file.
    """
    manifest = read_manifest(path, remedy)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}). {remedy}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != manifest["sha256"]:
        raise DataError(
            f"{path} is damaged or was changed: its SHA-256 is {found}, "
            f"its manifest says {manifest['sha256']}. {remedy}"
        )
    return load_npz(io.BytesIO(content), path, remedy), manifest


def load_npz(
    source: Path | io.BytesIO, name: Path, remedy: str = "", keys: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Every array of an .npz (with `keys`: those of them that it has), never unpickled.

    Compared with the CRC-32 of every array that is read; a file (not bytes in memory) also with SHA256SUMS, see
    `equirelax_lab.data.sums`.

    Raises:
        DataError: naming `name`, if it is missing or damaged.
    """
    if isinstance(source, Path):
        check_sum(source)
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
