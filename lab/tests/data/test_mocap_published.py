"""The published motion capture data: its windows drawn again, its file read and downloaded."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from equirelax_lab.data import mocap, mocap_published
from equirelax_lab.data.archive import load_npz
from equirelax_lab.data.mocap_published import PUBLISHED, published_split, read_published
from file_server import Server
from real_data import SAMPLES

from equirelax.errors import DataError


def recorded() -> dict[str, np.ndarray]:
    return load_npz(SAMPLES / mocap.FOLDER / "cmu09_run.npz", SAMPLES)


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The published runs as EGNO's file holds them: bones, and float64 positions of every trial."""
    motion = recorded()
    trials = np.split(motion["pos"].astype(np.float64), np.cumsum(motion["lengths"])[:-1])
    content = pickle.dumps((motion["edges"].tolist(), trials), protocol=4)
    known = {**PUBLISHED, "run": replace(PUBLISHED["run"], blob=blob(content))}
    monkeypatch.setattr(mocap_published, "PUBLISHED", known)
    return content


def test_the_windows_of_the_runs_are_those_of_the_published_file() -> None:
    split = published_split("run")
    expected = load_npz(SAMPLES / mocap.FOLDER / "egno_split_run.npz", SAMPLES)
    assert split.keys() == expected.keys()
    assert all(np.array_equal(split[key], expected[key]) for key in expected)


def test_the_windows_of_the_walks_are_those_of_the_published_file() -> None:
    """Some numbers of EGNO's split.pkl, and the SHA-256 of all of them in order."""
    split = published_split("walk")
    assert split["train_trial"].tolist() == [20, 1, 17, 13, 14, 9, 4, 2, 7, 5, 16]
    numbers = np.concatenate([split[f"{name}_start"].ravel() for name in mocap.SPLITS]).astype("<i8")
    assert hashlib.sha256(numbers.tobytes()).hexdigest() == WALK_STARTS


WALK_STARTS = "fd3ac6d1483f59185bf7aefa4a230503bffd41b1976f8a81e1a117eccc34bcb5"


def test_the_published_file_becomes_the_files_of_the_benchmark(published: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.pkl"
    path.write_bytes(published)
    motion, expected = read_published(path), recorded()
    assert all(np.array_equal(motion[key], expected[key]) for key in expected)
    files = mocap_published.get("run", tmp_path, file=path)
    assert path.exists()
    assert [file.name for file in files] == ["cmu09_run.npz", "egno_split_run.npz"]
    assert json.loads(files[0].with_suffix(".json").read_text())["git_blob"] == blob(published)
    for split in mocap.SPLITS:
        mine, theirs = (mocap.load(split, case="run", root=root) for root in (tmp_path, SAMPLES))
        assert np.array_equal(mine.trajectory, theirs.trajectory)
    before = files[0].stat().st_mtime_ns
    assert mocap_published.get("run", tmp_path) == files  # there: nothing is asked for
    assert files[0].stat().st_mtime_ns == before


@pytest.fixture
def server(published: bytes) -> Iterator[Server]:
    made = Server()
    made.content = published
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_the_command_downloads_and_says_what_to_do(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from equirelax_lab.cli import main

    words = ["data", "get", "mocap-run", "--data", str(tmp_path), "--url", server.url]
    assert main(words) == 0
    assert "egno_split_run.npz" in capsys.readouterr().out
    assert not list((tmp_path / "cmu_mocap").glob("*.pkl*"))
    server.content = server.content[:-1] + b"x"
    server.tag = None
    assert main(words) == 2
    error = capsys.readouterr().err
    for part in (
        "is not the published file",
        "mocap-run --archive PATH",
        "data make mocap --case run --asf 09.asf",
    ):
        assert part in error
    assert len(mocap.load("train", case="run", root=tmp_path)) == 200  # what was there is kept
    assert not list((tmp_path / "cmu_mocap").glob("*.pkl*"))


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.pkl"
    for content in (b"", b"no pickle", pickle.dumps(3), pickle.dumps(([[1, 0]], [np.zeros((4, 31, 3))]))):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"other\.pkl"):
            read_published(path)
    with pytest.raises(DataError, match=r"none\.pkl cannot be read"):
        read_published(tmp_path / "none.pkl")
    with pytest.raises(DataError, match=r"other\.pkl is not the published file.*motion/dataset"):
        mocap_published.get("walk", tmp_path, file=path)
