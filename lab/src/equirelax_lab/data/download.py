"""Download published archives: pooch fetches and verifies, the standard library unpacks.

This module adds two things: a download continues where an earlier one stopped, and a folder is put in its place only after all
its files were verified.
"""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
import tempfile
import urllib.parse
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equirelax.errors import DataError, EquirelaxError
from equirelax.files import sha256, storage_errors, write_text
from equirelax_lab.data.archive import write_sums
from equirelax_lab.data.root import command, search_roots, writable_root

ATTEMPTS = 4
"""Tries at each address when the connection breaks."""
LIMIT = 16 << 30
"""Most bytes that an archive may unpack to."""
_TIMEOUT = 30.0
BLOCK = 1 << 20
_TEMPORARY_ANSWERS = (408, 425, 429)
"""HTTP status codes below 500 after which another try may succeed."""


@dataclass(frozen=True)
class Archive:
    """A published .zip or .tar (compressed or not) that holds one folder.

    Attributes:
        name: The data set's name for `equirelax data get`.
        file: File name of the archive.
        folder: The only folder in it, which is unpacked below `parent` of the data root.
        urls: Its addresses, in the order in which they are tried.
        md5: Published MD5 sums of files in the folder, by name.
        sha256: SHA-256 of the archive, or None if none was published.
    """

    name: str
    file: str
    folder: str
    parent: str
    urls: tuple[str, ...]
    md5: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None

    @property
    def relative(self) -> Path:
        """The folder's path below the data root."""
        return Path(self.parent) / self.folder

    def locate(self, root: str | os.PathLike[str] | None = None) -> Path | None:
        """Find the folder, below `parent` or directly below a searched root; None if it is nowhere."""
        below = (self.relative, Path(self.folder))
        places = (base / name for base in search_roots(root) for name in below)
        return next((place for place in places if place.is_dir()), None)


# The MD5 sums are the ones that several public loaders of this archive check. No sum of the .zip itself was published.
MODELNET40 = Archive(
    name="modelnet40",
    file="modelnet40_ply_hdf5_2048.zip",
    folder="modelnet40_ply_hdf5_2048",
    parent="modelnet40",
    urls=(
        "https://shapenet.cs.stanford.edu/media/modelnet40_ply_hdf5_2048.zip",
        "https://github.com/ma-xu/pointMLP-pytorch/releases/download/Modenet40_dataset/"
        "modelnet40_ply_hdf5_2048.zip",
    ),
    md5={
        "ply_data_train0.h5": "3176385ffc31a7b6b5af22191fd920d1",
        "ply_data_train1.h5": "e3f613fb500559403b34925112754dc4",
        "ply_data_train2.h5": "0c56e233a090ff87c3049d4ce08e7d8b",
        "ply_data_train3.h5": "9d2af465adfa33a3285c369f3ca66c45",
        "ply_data_train4.h5": "dff38de489b2c41bfaeded86c2208984",
        "ply_data_test0.h5": "e9732e6d83b09e79e9a7617df058adee",
        "ply_data_test1.h5": "aba4b12a67c34391cc3c015a6f08ed4b",
    },
)
# No checksum was published. The content of the files is checked when it is loaded.
RMD17 = Archive(
    name="rmd17",
    file="rmd17.tar.bz2",
    folder="rmd17",
    parent="md17",
    urls=(
        "https://figshare.com/ndownloader/files/23950376",
        "https://archive.materialscloud.org/record/file?filename=rmd17.tar.bz2&record_id=466",
    ),
)
ARCHIVES: Mapping[str, Archive] = {archive.name: archive for archive in (MODELNET40, RMD17)}


def get(
    archive: Archive,
    root: str | os.PathLike[str] | None = None,
    *,
    file: Path | None = None,
    force: bool = False,
) -> Path:
    """Download and unpack an archive below the data root, unless its folder is there already.

    Args:
        archive: The archive.
        root: The data root, see `equirelax_lab.data.root`. If it is read-only, the cache folder is used.
        file: The archive as a file, obtained in another way. Nothing is downloaded then.
        force: Download again, and replace existing files.

    Returns:
        The unpacked folder.

    Raises:
        DataError: No address gave the archive, or it is not the right one. The message says what to do. A partial download
            is kept for the next try.
        StorageError: The disk is full. The partial download is kept.
    """
    import filelock

    if not force and file is None and (there := archive.locate(root)) is not None:
        _verify(there, archive.md5, remedy="Download it again with --force")
        return there
    folder = writable_root(root) / archive.relative
    if file is not None:
        return _install(file, folder, archive, origin=str(file))
    target = folder.parent / archive.file
    failures = []
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(
        target.with_name(f".{target.name}.lock")
    ):  # ranks, or runs of a study, may all need it at once
        for url in archive.urls:
            try:
                fetch(url, target, known_sha256=archive.sha256)
                _install(target, folder, archive, origin=url)
            except DataError as error:
                target.unlink(missing_ok=True)
                failures.append(str(error).rstrip("."))
            else:
                target.unlink()
                return folder
    raise DataError(
        f"{archive.name} could not be downloaded. {'. '.join(failures)}. Get {archive.file} in another way (with a browser, from "
        f"a mirror or a colleague) and pass it to the same command: "
        f"{command(f'equirelax data get {archive.name} --archive PATH', root)}; or unpack it yourself as {folder}."
    )


def _install(path: Path, folder: Path, archive: Archive, origin: str) -> Path:
    """Verify and unpack the archive `path` to `folder`, and record its origin beside it."""
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    actual = sha256(path)
    if archive.sha256 is not None and actual != archive.sha256:
        raise DataError(f"{path} is not the archive: its SHA-256 is {actual}, expected {archive.sha256}.")
    unpack(path, folder, archive.md5)
    write_sums(folder)
    note = {"origin": origin, "file": archive.file, "sha256": actual, "bytes": path.stat().st_size}
    write_text(folder.with_name(folder.name + ".json"), json.dumps(note, indent=2) + "\n")
    return folder


def fetch(url: str, target: Path, *, known_sha256: str | None = None) -> Path:
    """Download `url` to `target` with pooch, unless it is there, and continue an earlier try that was interrupted.

    Raises:
        DataError: The address is wrong or dead, the connection broke `ATTEMPTS` times (what arrived is kept), or the SHA-256
            is not the known one.
        StorageError: The disk is full.
    """
    import pooch
    import requests

    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url} is not an http or https address.")
    pooch.get_logger().setLevel("WARNING")
    part = target.with_name(target.name + ".part")
    fetcher = pooch.create(
        target.parent,
        "",
        registry={target.name: known_sha256},
        urls={target.name: url},
        retry_if_failed=ATTEMPTS - 1,
    )
    try:
        with storage_errors(target):
            fetcher.fetch(target.name, downloader=ResumingDownloader(part))
    except requests.exceptions.RequestException as error:
        size = part.stat().st_size if part.exists() else 0
        kept = f"; {size} bytes are kept, and the same command continues from there" if size else ""
        raise DataError(f"{url} cannot be read ({_reason(error)}){kept}.") from error
    except ValueError as error:  # pooch's, for another hash
        raise DataError(f"{url} gave a damaged file ({' '.join(str(error).split())}).") from error
    return target


def _reason(error: Exception) -> str:
    """The reason why a download stopped, without the details of connection pool, path and number of tries."""
    innermost = getattr(error.args[0], "reason", None) if error.args else None
    text = " ".join(str(innermost or error).split())
    return text.partition("): ")[2] if text.startswith("HTTP") and "): " in text else text


class ResumingDownloader:
    """A downloader for pooch that continues a partial file.

    It continues only if the server still has the same file, by its strong entity tag or its date; otherwise it starts again.

    Args:
        part: The partial file, which is kept when the connection breaks. A note beside it (.json) holds address and tag.
    """

    def __init__(self, part: Path) -> None:
        self.part, self.note = part, part.with_name(part.name + ".json")

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """Download `url` to `output_file`; pooch calls this.

        Raises:
            requests.RequestException: Another try may succeed.
            DataError: The server refuses.
        """
        import requests
        from tqdm import tqdm  # type: ignore[import-untyped]

        tag = self._tag(url)
        have = self.part.stat().st_size if tag and self.part.exists() else 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": tag}
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            continues = response.status_code == 206
            place = response.headers.get("Content-Range", "")
            if response.status_code == 416 or (continues and not place.startswith(f"bytes {have}-")):
                self._forget()
                raise requests.exceptions.RequestException("the server cannot continue the partial file")
            if 400 <= response.status_code < 500 and response.status_code not in _TEMPORARY_ANSWERS:
                raise DataError(f"{url} answers {response.status_code} {response.reason}.")
            response.raise_for_status()
            if not continues:
                have = 0
                entity = response.headers.get("ETag", "")
                tag = entity if entity.startswith('"') else response.headers.get("Last-Modified", "")
                write_text(self.note, json.dumps({"url": url, "tag": tag}))
            length = response.headers.get("Content-Length", "")
            total = have + int(length) if length.isdigit() else None
            bar = tqdm(
                desc=self.part.stem, total=total, initial=have, unit="iB", unit_scale=True, unit_divisor=1024
            )
            with self.part.open("ab" if continues else "wb") as out, bar:
                for block in response.iter_content(BLOCK):
                    out.write(block)
                    bar.update(len(block))
        self.part.replace(output_file)
        self._forget()

    def _tag(self, url: str) -> str:
        """The tag of the file of which `part` is the beginning; empty if unknown."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            noted = json.loads(self.note.read_text(encoding="utf-8"))
            if noted.get("url") == url:
                return str(noted.get("tag", ""))
        return ""

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def unpack(path: Path, folder: Path, md5: Mapping[str, str], *, limit: int = LIMIT) -> Path:
    """Unpack the folder called `folder.name` out of the archive `path`, verify it, and replace `folder` by it.

    Entries outside that folder are left out. `zipfile` and the data filter of `tarfile` allow nothing to be written elsewhere.

    Raises:
        DataError: The archive is unreadable or another one, would unpack to more than `limit` bytes, or lacks files or holds
            files with another MD5.
        StorageError: The disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        fresh = Path(temporary) / folder.name
        try:
            with storage_errors(folder):
                _extract(path, Path(temporary), folder.name, limit)
        except EquirelaxError:
            raise
        # A damaged archive raises errors of many types: BadZipFile, TarError, zlib.error, LZMAError, EOFError, RuntimeError, ...
        except Exception as error:
            raise DataError(f"{path} cannot be unpacked ({' '.join(str(error).split())}).") from error
        if not fresh.is_dir():
            raise DataError(f"{path} has no folder {folder.name}; it is another archive.")
        _verify(fresh, md5, remedy=f"{path} is damaged or another archive")
        if folder.exists():
            folder.replace(Path(temporary) / "old")
        fresh.replace(folder)
    return folder


def _extract(path: Path, place: Path, name: str, limit: int) -> None:
    """Write the entries below the folder `name` of an archive to `place`."""

    def check(size: int) -> None:
        if size > limit:
            raise DataError(f"{path} would unpack to {size} bytes, more than {limit}.")

    if tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            members = [m for m in tar if m.name.removeprefix("./").startswith(f"{name}/")]
            check(sum(member.size for member in members))
            tar.extractall(place, members, filter="data")
    else:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.startswith(f"{name}/")]
            check(sum(entry.file_size for entry in entries))
            archive.extractall(place, entries)


def _verify(folder: Path, md5: Mapping[str, str], remedy: str) -> None:
    """Raise `DataError`, ending in `remedy`, unless all files are there with their published MD5."""
    import pooch

    for name, expected in md5.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{folder} has no {name}. {remedy}.")
        if (actual := pooch.file_hash(str(path), alg="md5")) != expected:
            raise DataError(
                f"{path} is damaged: its MD5 is {actual}, the published one is {expected}. {remedy}."
            )
