"""Downloading archives from a server that the test runs: resuming, damage, dead addresses, unsafe archives."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import socket
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from equirelax_lab.cli import main
from equirelax_lab.data import download
from equirelax_lab.data.download import RMD17, Archive, fetch, get, unpack
from file_server import CONTENT, Server

from equirelax.errors import DataError, StorageError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    monkeypatch.setattr(download, "BLOCK", 10_000)


def one_try(monkeypatch: pytest.MonkeyPatch, server: Server, target: Path, bytes_sent: int = 100_000) -> None:
    """A download that is interrupted."""
    server.breaks = [bytes_sent]
    with monkeypatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        with pytest.raises(DataError, match=f"{bytes_sent} bytes are kept"):
            fetch(server.url, target)
    assert not target.exists()


def test_a_file_arrives(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.zip"
    fetch(server.url, target, known_sha256=hashlib.sha256(CONTENT).hexdigest())
    assert target.read_bytes() == CONTENT
    assert [p.name for p in target.parent.iterdir()] == ["file.zip"]


def test_a_broken_connection_continues_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000, 50_000]
    fetch(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_continues_an_earlier_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_try(monkeypatch, server, tmp_path / "file.zip")
    fetch(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def _changed(server: Server) -> None:
    server.content, server.tag = CONTENT[::-1], '"v2"'


def _no_ranges(server: Server) -> None:
    server.ranges = False


def _skewed(server: Server) -> None:
    server.skew = 7


def _shorter(server: Server) -> None:
    server.content = CONTENT[:90_000]


@pytest.mark.parametrize("change", [_changed, _no_ranges, _skewed, _shorter])
def test_it_starts_again_where_it_cannot_continue(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Server], None]
) -> None:
    one_try(monkeypatch, server, tmp_path / "file.zip")
    change(server)
    fetch(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == server.content


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_strong_tag_nothing_is_pieced_together(
    server: Server, tmp_path: Path, tag: str | None
) -> None:
    server.tag, server.breaks = tag, [100_000]
    fetch(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_a_partial_file_of_another_address_is_not_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(b"x" * 1000)
    note = {"url": "http://elsewhere/file.zip", "tag": '"v1"'}
    (tmp_path / "file.zip.part.json").write_text(json.dumps(note))
    fetch(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{server.url} gave a damaged file"):
        fetch(server.url, tmp_path / "file.zip", known_sha256="00" * 32)
    assert not list(tmp_path.iterdir())


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    server.codes = [503, 429]
    fetch(server.url, tmp_path / "file.zip")
    assert len(server.asked) == 3
    server.codes = [404]
    with pytest.raises(DataError, match="404"):
        fetch(server.url, tmp_path / "other.zip")
    assert len(server.asked) == 4


def test_dead_hosts_and_odd_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/file.zip", "file:///etc/hostname"):
        with pytest.raises(DataError, match=url) as raised:
            fetch(url, tmp_path / "file.zip")
        assert "HTTPConnection" not in str(raised.value)


def test_a_full_disk_keeps_what_is_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_try(monkeypatch, server, tmp_path / "file.zip")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tqdm.tqdm.update", full)
        with pytest.raises(StorageError):
            fetch(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip.part").exists()


# --- archives


FILES = {"a.h5": b"first", "b/c.txt": b"second"}
MD5 = {name: hashlib.md5(text).hexdigest() for name, text in FILES.items()}


def write_zip(path: Path, extra: dict[str, bytes] | None = None, folder: str = "cloud") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(f"{folder}/{name}", text)
        for name, text in (extra or {}).items():
            archive.writestr(name, text)
    return path


def write_tar(path: Path, extra: dict[str, bytes] | None = None, mode: str = "w:bz2") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        entries = {f"cloud/{name}": text for name, text in FILES.items()} | (extra or {})
        for name, text in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return path


WRITERS: dict[str, Callable[..., Path]] = {
    "zip": write_zip,
    **{f"tar {mode}": functools.partial(write_tar, mode=mode) for mode in ("w:bz2", "w:gz", "w")},
}
KINDS = pytest.mark.parametrize("kind", WRITERS)


@KINDS
def test_unpacking_leaves_out_what_lies_beside_the_folder(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path / "archive", {"__MACOSX/cloud/a.h5": b"junk", "other/b": b"no"})
    folder = unpack(path, tmp_path / "out" / "cloud", MD5)
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == FILES
    assert [p.name for p in folder.parent.iterdir()] == ["cloud"]


def test_unpacking_replaces_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "cloud"
    folder.mkdir()
    (folder / "old").touch()
    unpack(write_zip(tmp_path / "file.zip"), folder, MD5)
    assert not (folder / "old").exists()
    assert (folder / "a.h5").exists()


@pytest.mark.parametrize("kind", ["zip", "tar w"])
@pytest.mark.parametrize(
    "name", ["../evil", "cloud/../../evil", "/evil", "cloud\\..\\..\\evil", "C:/evil", "cloud/C:evil"]
)
def test_nothing_is_written_outside_the_folder(tmp_path: Path, kind: str, name: str) -> None:
    path = WRITERS[kind](tmp_path / "archive", {name: b"evil"})
    folder = tmp_path / "deep" / "cloud"
    with contextlib.suppress(DataError):  # a tar with such an entry is refused
        unpack(path, folder, MD5)
    assert all(folder in found.parents for found in tmp_path.rglob("*evil*"))
    assert {found.name for found in folder.parent.iterdir()} <= {"cloud"}


def test_links_of_a_zip_are_files_and_those_of_a_tar_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "file.zip")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("cloud/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    assert not (unpack(path, tmp_path / "cloud", MD5) / "link").is_symlink()
    with tarfile.open(tmp_path / "file.tar", "w") as tar:
        entry = tarfile.TarInfo("cloud/link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(entry)
    with pytest.raises(DataError, match=r"file\.tar"):
        unpack(tmp_path / "file.tar", tmp_path / "other" / "cloud", {})


def test_damaged_and_other_archives_are_named(tmp_path: Path) -> None:
    good = write_zip(tmp_path / "file.zip")
    whole = good.read_bytes()
    broken = tmp_path / "broken.zip"
    for content, message in (
        (whole[:-30], "cannot be unpacked"),
        (whole.replace(b"first", b"worst"), "cannot be unpacked .*CRC"),
        (b"<html>404</html>", "cannot be unpacked"),
        (
            write_tar(tmp_path / "tar", {"cloud/c": np.random.default_rng(0).bytes(200_000)}).read_bytes()[
                :100_000
            ],
            "cannot",
        ),
    ):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=message):
            unpack(broken, tmp_path / "cloud", MD5)
    with pytest.raises(DataError, match="no folder other"):
        unpack(good, tmp_path / "other", MD5)
    with pytest.raises(DataError, match=r"a\.h5 is damaged: its MD5 is .* 00\."):
        unpack(good, tmp_path / "cloud", {"a.h5": "00"})
    with pytest.raises(DataError, match=r"has no z\.h5"):
        unpack(good, tmp_path / "cloud", {"z.h5": "00"})
    with pytest.raises(DataError, match="would unpack to 11 bytes, more than 10"):
        unpack(good, tmp_path / "cloud", MD5, limit=10)
    assert not (tmp_path / "cloud").exists()


# --- all of it


def test_an_archive_is_found_below_the_root(tmp_path: Path) -> None:
    assert RMD17.locate(tmp_path) is None
    for folder in (tmp_path / "rmd17", tmp_path / "md17" / "rmd17"):
        folder.mkdir(parents=True)
        assert RMD17.locate(tmp_path) == folder


def archive_of(*urls: str) -> Archive:
    return Archive("clouds", "file.zip", "cloud", "parent", urls, MD5)


@pytest.fixture
def zipped(server: Server, tmp_path: Path) -> Server:
    server.content = write_zip(tmp_path / "made.zip").read_bytes()
    return server


def test_get_fetches_unpacks_notes_and_is_content(zipped: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder = get(archive_of(zipped.url), root)
    assert folder == root / "parent" / "cloud"
    assert (folder / "a.h5").read_bytes() == b"first"
    assert sorted(p.name for p in folder.parent.glob("[!.]*")) == ["cloud", "cloud.json"]
    note = json.loads((root / "parent" / "cloud.json").read_text())
    assert note["origin"] == zipped.url
    assert note["sha256"] == hashlib.sha256(zipped.content).hexdigest()
    assert get(archive_of("http://127.0.0.1:9/none"), root) == folder  # there: nothing is asked for
    (folder / "a.h5").write_bytes(b"later")
    with pytest.raises(DataError, match=r"is damaged.*--force"):
        get(archive_of(zipped.url), root)
    get(archive_of(zipped.url), root, force=True)
    assert (folder / "a.h5").read_bytes() == b"first"


def test_get_tries_the_next_address(zipped: Server, tmp_path: Path) -> None:
    zipped.codes = [404]
    folder = get(archive_of(zipped.url, zipped.url + "?mirror"), tmp_path / "root")
    assert folder.is_dir()
    note = json.loads(folder.with_name("cloud.json").read_text())
    assert note["origin"].endswith("?mirror")


def test_get_says_what_to_do_when_no_address_works(server: Server, tmp_path: Path) -> None:
    server.codes = [404]  # the second address gives what is no archive
    with pytest.raises(DataError) as caught:
        get(archive_of(server.url, server.url + "?b"), tmp_path / "root")
    for part in (
        "answers 404",
        "cannot be unpacked",
        "equirelax data get clouds --archive PATH",
        "root/parent/cloud",
    ):
        assert part in str(caught.value)
    assert not list((tmp_path / "root" / "parent").glob("[!.]*"))


def test_get_keeps_a_good_archive_when_the_disk_is_full(
    zipped: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("full")

    with monkeypatch.context() as patch:
        patch.setattr(download, "unpack", full)
        with pytest.raises(StorageError, match="full"):
            get(archive_of(zipped.url, "http://127.0.0.1:9/never"), tmp_path)
    get(archive_of(zipped.url), tmp_path)
    assert zipped.asked == [None]


def test_get_takes_a_file(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "mine.zip")
    folder = get(archive_of(), tmp_path / "root", file=path)
    assert (folder / "b" / "c.txt").read_bytes() == b"second"
    assert path.exists()
    with pytest.raises(DataError, match=r"no file .*none\.zip"):
        get(archive_of(), tmp_path / "root", file=tmp_path / "none.zip")


def test_the_command(
    zipped: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("equirelax_lab.cli.data.ARCHIVES", {"modelnet40": archive_of(zipped.url)})
    words = ["data", "get", "modelnet40", "--data", str(tmp_path / "root")]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert str(tmp_path / "root" / "parent" / "cloud") in out
    assert "100%" in err
    assert main([*words, "--archive", str(tmp_path / "made.zip")]) == 0
    zipped.codes = [404]
    assert main([*words, "--url", zipped.url]) == 2
    assert "--archive PATH" in capsys.readouterr().err
    assert main(["data", "get", "nbody", "--force"]) == 2
    assert "cannot be downloaded" in capsys.readouterr().err
