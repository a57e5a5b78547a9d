"""Runs of a study with several processes each: they train as one process does, end with Ctrl-C, and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from equirelax.study.state import JOURNAL
from equirelax.training.folder import METRICS, RESULT, read_table

File = Callable[..., Path]
SETTINGS = {
    "epochs": 3, "batch_size": 16, "validate_every": 1,
    "dataset": {"train": 48, "val": 24, "test": 24}, "network": {"layers": 1, "hidden": 16},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _data(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIRELAX_DATA", str(tiny_root))


def command(path: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "equirelax.cli", "study", "run", str(path), "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def processes_of(run: Path) -> list[int]:
    """Numbers of living processes whose command line names a run's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words:
            found.append(int(path.parent.name))
    return found


def rows(run: Path) -> list[dict[str, str]]:
    try:
        return read_table(run / METRICS)
    except OSError:
        return []


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_a_run_train_as_one(study_file: File, tmp_path: Path) -> None:
    for name, devices in (("one", 1), ("two", 2)):
        path = study_file(methods=["ace"], devices=devices, settings=SETTINGS, timeout="4 min")
        process = command(path, tmp_path / name)
        text = process.communicate(timeout=250)[0]
        assert process.returncode == 0, text
        run = json.loads((tmp_path / name / JOURNAL).read_text())["runs"]["ace-seed0"]
        assert (run["status"], run["attempts"]) == ("finished", 1)
    both = (rows(tmp_path / name / "ace-seed0") for name in ("one", "two"))
    for one, two in zip(*both, strict=True):
        for key in ("train/loss", "val/projected", "val/relaxed", "gamma/layers.0.update_1"):
            assert float(one[key]) == pytest.approx(float(two[key]), rel=1e-4), key


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_a_run_are_interrupted_lost_and_resumed(study_file: File, tmp_path: Path) -> None:
    """Ctrl-C ends both after the same epoch; kill -9 of one of them costs a try, and leaves none behind."""
    settings = {**SETTINGS, "epochs": 400, "checkpoint_every": 5}
    path, out = study_file(methods=["scheduled"], devices=2, settings=settings), tmp_path / "out"
    run = out / "scheduled-seed0"

    process = command(path, out)
    wait_until(lambda: len(rows(run)) > 2, process)
    assert len(processes_of(run)) == 2
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=100)[0]
    assert process.returncode == 130, text
    assert not processes_of(run)
    assert (run / "last.ckpt").exists()
    assert not (run / RESULT).exists()
    done = len(rows(run))

    process = command(path, out)
    wait_until(lambda: len(rows(run)) > done + 5, process)
    first, second = sorted(processes_of(run))
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: bool(processes_of(run)) and not {first, second} & set(processes_of(run)), process)
    before = len(rows(run))
    wait_until(lambda: len(rows(run)) > before + 1, process)
    assert [int(row["epoch"]) for row in rows(run)] == list(range(len(rows(run))))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=100) == 130
    process.communicate()
    assert not processes_of(run)
    assert json.loads((out / JOURNAL).read_text())["runs"]["scheduled-seed0"]["attempts"] == 2
