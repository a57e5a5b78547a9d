"""Fetching archives, against a server of the test's own: resuming, damage, dead addresses, unsafe archives."""

from __future__ import annotations

import hashlib
import json
import socket
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from equirelax_lab.cli import main
from equirelax_lab.data import download
from equirelax_lab.data.download import Archive, fetch, get, unpack

from equirelax.errors import DataError

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server:
    """A small file server that can be told to misbehave, and remembers the ranges it was asked for."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.tag: str | None = '"v1"'
        self.breaks: list[int] = []  # bytes after which the next answers break off
        self.codes: list[int] = []  # what the next answers are instead
        self.ranges = True
        self.skew = 0  # by how much an answered range is off
        self.asked: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.zip"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.asked.append(asked)
        if self.codes:
            request.send_error(self.codes.pop(0))
            return
        start, size = 0, len(self.content)
        same = request.headers.get("If-Range") == self.tag
        if asked and same and self.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= size and start:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{size}")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start + self.skew}-{size - 1}/{size}")
        if self.tag:
            request.send_header("ETag", self.tag)
        request.send_header("Content-Length", str(size - start))
        request.end_headers()
        sent = self.content[start:]
        request.wfile.write(sent[: self.breaks.pop(0)] if self.breaks else sent)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def quick(url: str, target: Path, **options: object) -> Path:
    return fetch(url, target, pause=0.0, timeout=5.0, **options)  # type: ignore[arg-type]


def test_a_file_arrives(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "file.zip"
    quick(
        server.url,
        target,
        sha256_sum=hashlib.sha256(CONTENT).hexdigest(),
        progress=lambda *news: seen.append(news),
    )
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in target.parent.iterdir()] == ["file.zip"]


def test_a_broken_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000, 50_000]
    quick(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000]
    with pytest.raises(DataError, match=r"ended after 100000 of 300000 bytes.*100000 bytes are kept"):
        quick(server.url, tmp_path / "file.zip", attempts=1)
    assert not (tmp_path / "file.zip").exists()
    quick(server.url, tmp_path / "file.zip", attempts=1)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def _changed(server: Server) -> None:
    server.content, server.tag = CONTENT[::-1], '"v2"'


def _no_ranges(server: Server) -> None:
    server.ranges = False


def _skewed(server: Server) -> None:
    server.skew = 7


@pytest.mark.parametrize("change", [_changed, _no_ranges, _skewed])
def test_it_begins_anew_where_it_cannot_go_on(
    server: Server, tmp_path: Path, change: Callable[[Server], None]
) -> None:
    server.breaks = [100_000]
    with pytest.raises(DataError):
        quick(server.url, tmp_path / "file.zip", attempts=1)
    change(server)
    quick(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == server.content


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_strong_tag_nothing_is_pieced_together(
    server: Server, tmp_path: Path, tag: str | None
) -> None:
    server.tag, server.breaks = tag, [100_000]
    quick(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_a_partial_file_of_another_address_is_not_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(b"x" * 1000)
    note = {"url": "http://elsewhere/file.zip", "validator": '"v1"'}
    (tmp_path / "file.zip.part.json").write_text(json.dumps(note))
    quick(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("length", [300_000, 300_010])
def test_a_partial_file_that_is_complete_or_too_long(server: Server, tmp_path: Path, length: int) -> None:
    (tmp_path / "file.zip.part").write_bytes((CONTENT + b"0123456789")[:length])
    (tmp_path / "file.zip.part.json").write_text(json.dumps({"url": server.url, "validator": '"v1"'}))
    quick(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert len(server.asked) == (1 if length == 300_000 else 2)


def test_a_wrong_checksum_is_refused_and_forgotten(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"SHA-256 is .*, expected 00"):
        quick(server.url, tmp_path / "file.zip", sha256_sum="00" * 32)
    assert not list(tmp_path.iterdir())


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    server.codes = [503, 429]
    quick(server.url, tmp_path / "file.zip")
    assert len(server.asked) == 3
    server.codes = [404]
    with pytest.raises(DataError, match=r"file.zip answers 404 Not Found"):
        quick(server.url, tmp_path / "other.zip")
    assert len(server.asked) == 4


def test_dead_hosts_and_odd_addresses(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(DataError, match=r"cannot be read .*refused"):
        quick(f"http://127.0.0.1:{port}/file.zip", tmp_path / "file.zip", attempts=2)
    with pytest.raises(DataError, match="not an http or https address"):
        quick("file:///etc/hostname", tmp_path / "file.zip")


def test_too_little_space(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(DataError, match="1000 bytes of space left; 300000 are needed"):
        quick(server.url, tmp_path / "file.zip")


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


def test_unpacking_leaves_out_what_lies_beside_the_folder(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "file.zip", {"__MACOSX/cloud/a.h5": b"junk"})
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


@pytest.mark.parametrize(
    "name", ["../evil", "cloud/../../evil", "/evil", "cloud\\..\\..\\evil", "C:/evil", "cloud/C:evil"]
)
def test_entries_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "file.zip", {name: b"evil"})
    with pytest.raises(DataError, match="may lead outside"):
        unpack(path, tmp_path / "deep" / "cloud", MD5)
    assert not list(tmp_path.rglob("*evil*"))
    assert not list((tmp_path / "deep").iterdir())


def test_links_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "file.zip")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("cloud/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(DataError, match="may lead outside"):
        unpack(path, tmp_path / "cloud", MD5)


def test_damaged_and_other_archives_are_named(tmp_path: Path) -> None:
    good = write_zip(tmp_path / "file.zip")
    whole = good.read_bytes()
    broken = tmp_path / "broken.zip"
    for content, message in (
        (whole[:-30], "cannot be unpacked"),
        (whole.replace(b"first", b"worst"), "cannot be unpacked .*CRC"),
        (b"<html>404</html>", "cannot be unpacked"),
    ):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=message):
            unpack(broken, tmp_path / "cloud", MD5)
    with pytest.raises(DataError, match="no folder other"):
        unpack(good, tmp_path / "other", MD5)
    with pytest.raises(DataError, match=r"MD5 is .*, published is 00"):
        unpack(good, tmp_path / "cloud", {"a.h5": "00"})
    with pytest.raises(DataError, match=r"has no z\.h5"):
        unpack(good, tmp_path / "cloud", {"z.h5": "00"})
    with pytest.raises(DataError, match="would unpack to 11 bytes, more than 10"):
        unpack(good, tmp_path / "cloud", MD5, limit=10)
    assert not (tmp_path / "cloud").exists()


# --- all of it


def archive_of(*urls: str) -> Archive:
    return Archive("clouds", "file.zip", "cloud", "parent", urls, MD5)


@pytest.fixture
def zipped(server: Server, tmp_path: Path) -> Server:
    server.content = write_zip(tmp_path / "made.zip").read_bytes()
    return server


def test_get_fetches_unpacks_notes_and_is_content(zipped: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder = get(archive_of(zipped.url), root, pause=0.0)
    assert folder == root / "parent" / "cloud"
    assert (folder / "a.h5").read_bytes() == b"first"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["cloud", "cloud.json"]
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
    folder = get(archive_of(zipped.url, zipped.url + "?mirror"), tmp_path / "root", pause=0.0)
    assert folder.is_dir()
    note = json.loads(folder.with_name("cloud.json").read_text())
    assert note["origin"].endswith("?mirror")


def test_get_says_what_to_do_when_no_address_works(server: Server, tmp_path: Path) -> None:
    server.codes = [404]  # the second address gives what is no archive
    with pytest.raises(DataError) as caught:
        get(archive_of(server.url, server.url + "?b"), tmp_path / "root", pause=0.0)
    for part in (
        "answers 404",
        "cannot be unpacked",
        "equirelax data get clouds --archive PATH",
        "root/parent/cloud",
    ):
        assert part in str(caught.value)
    assert not list((tmp_path / "root" / "parent").iterdir())


def test_get_keeps_a_good_archive_when_the_disk_is_full(
    zipped: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise download._SpaceError("full")

    with monkeypatch.context() as patch:
        patch.setattr(download, "unpack", full)
        with pytest.raises(DataError, match="full"):
            get(archive_of(zipped.url, "http://127.0.0.1:9/never"), tmp_path, pause=0.0)
    get(archive_of(zipped.url), tmp_path, pause=0.0)
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
    assert "MiB" in err
    assert main([*words, "--archive", str(tmp_path / "made.zip")]) == 0
    zipped.codes = [404]
    assert main([*words, "--url", zipped.url]) == 2
    assert "--archive PATH" in capsys.readouterr().err
    assert main(["data", "get", "mocap-run", "--force"]) == 2
    assert "not downloaded" in capsys.readouterr().err
