"""Fetching published archives: an interrupted download goes on where it stopped, content is verified, unpacking is safe.

`get` does all of it. Nothing is put in its place before it was verified; what went wrong, and what a person can do
about it, is said in one message.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from equirelax.errors import DataError
from equirelax.files import sha256, write_text
from equirelax_lab.data.containers import UNREADABLE, Entry, opened
from equirelax_lab.data.root import search_roots, writable_root
from equirelax_lab.data.sums import write_sums

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there, and all bytes if the server says how many."""

_CHUNK = 1 << 20
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
LIMIT = 16 << 30
"""Most bytes that an archive may unpack to."""


class _SpaceError(DataError):
    """The disk is full: another address would not help, and what was downloaded is good."""


@dataclass(frozen=True)
class Archive:
    """A published .zip or .tar (compressed or not) with one folder in it.

    Attributes:
        name: of the data set, as `equirelax data get` takes it.
        file: name of the archive.
        folder: the one folder in it; it comes to lie below `parent` of the data root.
        urls: where it is, in the order that they are tried.
        md5: of files in the folder, by name, as published.
        sha256: of the archive, or None if nobody published it.
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
        """The folder below the data root."""
        return Path(self.parent) / self.folder

    def locate(self, root: str | os.PathLike[str] | None = None) -> Path | None:
        """The folder, below `parent` or directly below a searched root; None if it is nowhere."""
        below = (self.relative, Path(self.folder))
        places = (base / name for base in search_roots(root) for name in below)
        return next((place for place in places if place.is_dir()), None)


# The MD5 sums are those that several public loaders of this archive check; of the .zip no sum was published.
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
# No sum of it is known to us; what is read from its files is checked when it is loaded.
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
    progress: Progress | None = None,
    attempts: int = 4,
    pause: float = 2.0,
) -> Path:
    """The archive's folder below the data root, fetched and unpacked unless it is there already.

    Args:
        archive: which one.
        root: see `equirelax_lab.data.root`; if it is read-only, the cache takes what is fetched.
        file: the archive, got in another way; nothing is downloaded then.
        force: fetch again, over what is there.
        progress: called after every megabyte.
        attempts, pause: tries at each address when the connection breaks, and seconds before the second one,
            doubled for each further one.

    Raises:
        DataError: none of the addresses gave the archive, or it is not what it should be; the message says what
            to do. What was downloaded stays for the next try, unless it is wrong.
    """
    if not force and file is None:
        found = archive.locate(root)
        if found is not None:
            _verify(found, archive.md5, remedy="Fetch it anew with --force")
            return found
    folder = writable_root(root) / archive.relative
    by_hand = (
        f"Get {archive.file} in another way (a browser, a mirror, a colleague) and give it to the same command: "
        f"equirelax data get {archive.name} --archive PATH; or unpack it yourself as {folder}"
    )
    if file is not None:
        return _install(file, folder, archive, origin=str(file))
    target = folder.parent / archive.file
    failures = []
    for url in archive.urls:
        try:
            if not target.is_file():  # a good one may be left from a try that found the disk full
                fetch(
                    url, target, sha256_sum=archive.sha256, progress=progress, attempts=attempts, pause=pause
                )
            _install(target, folder, archive, origin=url)
        except _SpaceError:
            raise
        except DataError as error:
            target.unlink(missing_ok=True)
            failures.append(str(error).rstrip("."))
        else:
            target.unlink()
            return folder
    raise DataError(f"{archive.name} could not be downloaded. {'. '.join(failures)}. {by_hand}.")


def _install(path: Path, folder: Path, archive: Archive, origin: str) -> Path:
    """Verify and unpack the archive `path` to `folder`, and note beside it where it came from."""
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    found = sha256(path)
    if archive.sha256 is not None and found != archive.sha256:
        raise DataError(f"{path} is not the archive: its SHA-256 is {found}, expected {archive.sha256}.")
    unpack(path, folder, archive.md5)
    write_sums(folder)
    note = {"origin": origin, "file": archive.file, "sha256": found, "bytes": path.stat().st_size}
    write_text(folder.with_name(folder.name + ".json"), json.dumps(note, indent=2) + "\n")
    return folder


def fetch(
    url: str,
    target: Path,
    *,
    sha256_sum: str | None = None,
    timeout: float = 30.0,
    attempts: int = 4,
    pause: float = 2.0,
    progress: Progress | None = None,
) -> Path:
    """Download `url` to `target`, going on with `target`.part where an earlier try stopped.

    It goes on only if the server still has the same file (entity tag or date); otherwise it begins anew.

    Raises:
        DataError: the address is wrong or dead, the connection broke `attempts` times (what came stays), the
            disk is full, or the SHA-256 is another one (what came is removed).
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url} is not an http or https address.")
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(attempts):
        try:
            _transfer(url, part, timeout, progress)
            break
        except (OSError, http.client.HTTPException) as error:
            code = error.code if isinstance(error, urllib.error.HTTPError) else None
            reason = getattr(error, "reason", None)
            if code == 416:  # what is there does not fit the server's file
                _forget(part)
            elif code is not None and code not in _RETRIED:
                raise DataError(f"{url} answers {code} {error.reason}.") from error  # type: ignore[union-attr]
            hopeless = isinstance(reason, ssl.SSLCertVerificationError | socket.gaierror)
            if hopeless or attempt + 1 == attempts:
                kept = part.stat().st_size if part.exists() else 0
                stays = f"; {kept} bytes are kept, and the same command goes on from there" if kept else ""
                raise DataError(f"{url} cannot be read ({_reason(error)}){stays}.") from error
            time.sleep(pause * 2**attempt)
    if sha256_sum is not None and (found := sha256(part)) != sha256_sum:
        _forget(part)
        raise DataError(f"What {url} gave is damaged: its SHA-256 is {found}, expected {sha256_sum}.")
    part.replace(target)
    _forget(part)
    return target


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    return " ".join(str(reason).split()).rstrip(".")


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _noted(part: Path, url: str) -> dict[str, str]:
    """What is known of the file that `part` is the beginning of; empty: nothing, so begin anew."""
    try:
        noted = json.loads(_note(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = isinstance(noted, dict) and noted.get("url") == url and noted.get("validator")
    return noted if same else {}


def _transfer(url: str, part: Path, timeout: float, progress: Progress | None) -> None:
    """One try. Raises OSError or HTTPException for what another try may mend, `DataError` for a full disk."""
    noted = _noted(part, url)
    have = part.stat().st_size if noted and part.exists() else 0
    headers = {"User-Agent": "equirelax", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": noted["validator"]}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return  # it was complete
        raise
    with response:
        if response.status == 206:
            start, _, size = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            if start.partition("-")[0] != str(have):
                _forget(part)
                raise http.client.HTTPException("the server went on at another place than it was asked to")
            total = int(size) if size.isdigit() else None
        else:
            have, length = 0, response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
            # a weak tag says too little to go on from
            tag = response.headers.get("ETag", "")
            validator = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
            write_text(_note(part), json.dumps({"url": url, "validator": validator}))
        _check_space(part.parent, None if total is None else total - have)
        with part.open("ab" if have else "wb") as out:
            while block := response.read(_CHUNK):
                _write(out, block, part)
                have += len(block)
                if progress is not None:
                    progress(have, total)
    if total is not None and have != total:
        raise http.client.HTTPException(f"the connection ended after {have} of {total} bytes")


def _write(out: object, block: bytes, part: Path) -> None:
    try:
        out.write(block)  # type: ignore[attr-defined]
    except OSError as error:  # not to be taken for the network's
        raise _SpaceError(f"{part} cannot be written ({error}).") from error


def _check_space(folder: Path, needed: int | None) -> None:
    free = shutil.disk_usage(folder).free
    if needed is not None and needed > free:
        raise _SpaceError(
            f"{folder} has {free} bytes of space left; {needed} are needed. Make room or use --data."
        )


def unpack(path: Path, folder: Path, md5: Mapping[str, str], *, limit: int = LIMIT) -> Path:
    """Unpack the folder of that name out of the archive `path` as `folder`, which it replaces, after verifying it.

    Nothing is written outside `folder`; entries beside the wanted folder are left out.

    Raises:
        DataError: not a readable archive, an entry whose name leads elsewhere or that is a link, more than `limit`
            bytes, too little space, or files that are missing or have another MD5.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        fresh = Path(temporary) / folder.name
        try:
            with opened(path) as container:
                entries = [(entry, _safe(entry, path)) for entry in container.entries()]
                wanted = [(e, p) for e, p in entries if p.parts[:1] == (folder.name,) and not e.directory]
                size = sum(entry.size for entry, _ in wanted)
                if size > limit:
                    raise DataError(f"{path} would unpack to {size} bytes, more than {limit}.")
                _check_space(folder.parent, size)
                for entry, place in wanted:
                    out = Path(temporary) / place
                    out.parent.mkdir(parents=True, exist_ok=True)
                    with container.read(entry) as source, out.open("wb") as written:
                        shutil.copyfileobj(source, written, _CHUNK)
        except DataError:
            raise
        except UNREADABLE as error:
            raise DataError(f"{path} cannot be unpacked ({_reason(error)}).") from error
        if not fresh.is_dir():
            raise DataError(f"{path} has no folder {folder.name}; it is another archive.")
        _verify(fresh, md5, remedy=f"{path} is damaged or another archive")
        if folder.exists():
            folder.replace(Path(temporary) / "old")
        fresh.replace(folder)
    return folder


def _safe(entry: Entry, path: Path) -> PurePosixPath:
    """The entry's place. Raises `DataError` if that is outside the folder it is unpacked to, or a link."""
    place = PurePosixPath(entry.name.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts or ":" in str(place) or entry.special:
        raise DataError(
            f"{path} holds the entry {entry.name!r}, which may lead outside its folder: not unpacked."
        )
    return place


def _verify(folder: Path, md5: Mapping[str, str], remedy: str) -> None:
    """Raise `DataError`, ending in `remedy`, unless all files are there with their published MD5."""
    for name, expected in md5.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{folder} has no {name}. {remedy}.")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != expected:
            raise DataError(f"{path} is damaged: its MD5 is {found}, published is {expected}. {remedy}.")
