"""Runs of a study with two processes each train as one process does, end with Ctrl-C, and resume."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from equirelax_lab.studies.study import read_study
from equirelax_lab.studies.trials import JOURNAL, trials
from equirelax_lab.training.folder import RESULT
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train
from study_process import ended, processes_of, rows, study_run, wait_until

pytestmark = pytest.mark.serial

File = Callable[..., Path]
SETTINGS = {
    "epochs": 3, "batch_size": 16, "validate_every": 1,
    "dataset": {"train": 48, "val": 24, "test": 24}, "network": {"layers": 1, "hidden": 16},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _data(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIRELAX_DATA", str(tiny_root))


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.timeout(900)
def test_two_processes_a_run_train_as_one(study_file: File, tmp_path: Path) -> None:
    path = study_file(methods=["ace"], devices=2, settings=SETTINGS, timeout="9 min")
    with study_run(path, tmp_path / "two") as process:
        code, text = ended(process)
    assert code == 0, text
    run = json.loads((tmp_path / "two" / JOURNAL).read_text())["runs"]["ace-seed0"]
    assert (run["status"], run["attempts"]) == ("finished", 1)
    (trial,) = trials(read_study(path))
    train(trial.config, tmp_path / "one", machine=Machine(progress=False))
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two" / "ace-seed0"), strict=True):
        for key in ("train/loss", "val/projected", "val/relaxed", "gamma/layers.0.update_1"):
            assert float(one[key]) == pytest.approx(float(two[key]), rel=1e-4), key


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.timeout(900)
def test_two_processes_a_run_are_interrupted_lost_and_resumed(study_file: File, tmp_path: Path) -> None:
    """Ctrl-C ends both processes after the same epoch; kill -9 of one costs a try, and leaves no process behind."""
    settings = {**SETTINGS, "epochs": 400, "checkpoint_every": 5}
    path, out = study_file(methods=["scheduled"], devices=2, settings=settings), tmp_path / "out"
    run = out / "scheduled-seed0"
    with study_run(path, out) as process:
        wait_until(lambda: len(rows(run)) > 2, process)
        assert len(processes_of(run)) == 2
        process.send_signal(signal.SIGINT)
        code, text = ended(process)
    assert code == 130, text
    assert not processes_of(run)
    assert (run / "last.ckpt").exists()
    assert not (run / RESULT).exists()
    done = len(rows(run))

    with study_run(path, out) as process:
        wait_until(lambda: len(rows(run)) > done + 5, process)
        before = processes_of(run)
        os.kill(before[1], signal.SIGKILL)
        wait_until(lambda: len(processes_of(run)) == 2 and not {*before} & {*processes_of(run)}, process)
        again = len(rows(run))
        wait_until(lambda: len(rows(run)) > again, process)
        assert [int(row["epoch"]) for row in rows(run)] == list(range(len(rows(run))))
        process.send_signal(signal.SIGINT)
        code, text = ended(process)
    assert code == 130, text
    assert not processes_of(run)
    assert json.loads((out / JOURNAL).read_text())["runs"]["scheduled-seed0"]["attempts"] == 2
