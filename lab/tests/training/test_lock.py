"""One process at a time works in a run's folder: tested with real processes, also killed ones."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.cli import main
from equirelax_lab.training import lock
from equirelax_lab.training.lock import LOCK, Owner, locked

from equirelax.errors import ConfigError, FolderInUseError

pytestmark = pytest.mark.serial

HOLD = """
import pathlib, sys, time
from equirelax_lab.training.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds tmp_path / "run" until it reads a line."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_told_by_whom(
    holder: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "nbody", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--resume"]
    before = (tmp_path / "run" / LOCK).read_text()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"in use by process {holder.pid} on {socket.gethostname()} since 20" in error
    assert "--out" in error
    assert (tmp_path / "run" / LOCK).read_text() == before, "the refused process left the owner's file alone"
    assert os.listdir(tmp_path / "run") == [LOCK]


def test_a_holder_that_ends_leaves_nothing(
    holder: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder.communicate("\n", timeout=60)
    assert holder.returncode == 0
    assert not (tmp_path / "run").exists(), "a folder that was made for nothing is removed"
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    assert capsys.readouterr().err == ""


def test_what_a_killed_process_left_is_taken_over(
    holder: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=60)
    assert (tmp_path / "run" / LOCK).exists()
    with locked(tmp_path / "run"):
        owner = Owner.read(tmp_path / "run" / LOCK)
        assert owner is not None
        assert owner.pid == os.getpid()
    assert f"taken over from process {holder.pid} on" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["", "{", "[]", '{"pid": null}', '{"pid": 1}', "\0" * 9])
def test_whatever_stands_in_a_left_file(left: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(left)
    with locked(tmp_path):
        assert Owner.read(tmp_path / LOCK) is not None
    assert not (tmp_path / LOCK).exists()
    assert tmp_path.exists(), "a folder that was there stays"


def test_a_file_removed_between_opening_and_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that releases the folder removes the file; a lock on the removed file would keep no other process out."""
    original: Callable[..., None] = lock._lock
    calls: list[int] = []

    def slow(handle: int, path: Path) -> None:
        calls.append(handle)
        if len(calls) == 1:
            path.unlink()
        original(handle, path)

    monkeypatch.setattr(lock, "_lock", slow)
    with locked(tmp_path):
        assert len(calls) == 2
        with pytest.raises(FolderInUseError, match=str(os.getpid())), locked(tmp_path):
            pass


def test_many_processes_one_winner(tmp_path: Path) -> None:
    """The descriptors of one process exclude each other too, and stand for many processes here."""
    refused = 0
    with ExitStack() as stack:
        for _ in range(20):
            try:
                stack.enter_context(locked(tmp_path))
            except FolderInUseError:
                refused += 1
    assert refused == 19
    assert not (tmp_path / LOCK).exists()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", without)
    with locked(tmp_path):
        pass
    assert "without locks" in capsys.readouterr().err


def test_folders_made_for_nothing_are_removed_again(tmp_path: Path) -> None:
    with locked(tmp_path / "runs" / "nbody" / "one"):
        pass
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "runs" / "nbody" / "one"):
        (tmp_path / "runs" / "kept").touch()
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["kept"]


def test_a_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(tmp_path):
        pass
    assert "has no file locks" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written to.*--out"), locked(tmp_path / "file" / "run"):
        pass
