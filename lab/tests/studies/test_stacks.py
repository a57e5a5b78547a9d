"""Runs that differ in the seed alone go through one process, with shell scripts in the place of training."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from equirelax_lab.studies import scheduler as scheduler_module
from equirelax_lab.studies.machines import Job, LocalMachine, Process
from equirelax_lab.studies.scheduler import Scheduler, Source
from equirelax_lab.studies.stacks import NOT_STACKABLE
from equirelax_lab.studies.study import read_study
from equirelax_lab.studies.trials import read_journal, trials
from equirelax_lab.training.folder import CONFIG, LOG
from equirelax_lab.training.lock import Owner

pytestmark = pytest.mark.serial

File = Callable[..., Path]


class Stacks(LocalMachine):
    """A machine that runs a shell script for every process.

    Args:
        script: Labels of its runs -> script, in the study's folder.
    """

    def __init__(self, script: Callable[[list[str]], str]) -> None:
        super().__init__()
        self.script = script
        self.started: list[list[str]] = []

    def start(self, job: Job, data: str | None) -> Process:
        runs = [(job.config, job.folder), *job.stacked]
        labels = [folder.name for _, folder in runs]
        self.started.append(labels)
        for config, folder in runs:
            config.write(folder / CONFIG)
        with (job.folder / LOG).open("ab") as log:
            words = ["sh", "-c", self.script(labels)]
            return Process(
                subprocess.Popen(words, cwd=job.folder.parent, stdout=log, stderr=log, start_new_session=True)
            )


def finish(labels: list[str]) -> str:
    """A script that finishes runs."""
    return "".join(f"echo '{{}}' > {label}/result.json; " for label in labels)


def study(path: Path, out: Path, machines: LocalMachine, stack: int) -> Scheduler:
    read = read_study(path)
    return Scheduler(read, out, Source(trials(read, out)), None, 1, lambda _: None, machines, stack)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "POLL", 0.01)


def test_seeds_go_together_and_kinds_apart(study_file: File, tmp_path: Path) -> None:
    machines = Stacks(finish)
    found = study(study_file(seeds=3), tmp_path / "out", machines, 2)
    assert found.run() == 0
    assert machines.started == [
        ["strict-seed0", "strict-seed1"],
        ["scheduled-seed0", "scheduled-seed1"],
        ["strict-seed2"],
        ["scheduled-seed2"],
    ]


def test_what_cannot_be_stacked_goes_alone_and_the_reason_is_said_once(
    study_file: File, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(labels: list[str]) -> str:
        refused = len(labels) > 1 and labels[0].startswith("scheduled")
        return f"echo 'it draws' >&2; exit {NOT_STACKABLE}" if refused else finish(labels)

    machines, out = Stacks(script), tmp_path / "out"
    assert study(study_file(seeds=4, attempts=1), out, machines, 2).run() == 0
    assert capsys.readouterr().err == "scheduled: it draws\n"
    assert [labels for labels in machines.started if labels[0].startswith("scheduled")] == [
        ["scheduled-seed0", "scheduled-seed1"],
        *([f"scheduled-seed{seed}"] for seed in (2, 3, 0, 1)),
    ]
    assert {run["attempts"] for run in read_journal(out)["runs"].values()} == {1}


def test_a_run_of_a_stack_fails_alone(study_file: File, tmp_path: Path) -> None:
    def script(labels: list[str]) -> str:
        return finish([labels[0]]) + f"echo 'equirelax: error: a NaN' >> {labels[1]}/log.txt; exit 2"

    found = study(study_file(seeds=2, methods=["strict"]), tmp_path / "out", Stacks(script), 8)
    assert found.run() == 1
    assert [(t.status, t.reason, t.attempts) for t in found.source.trials] == [
        ("finished", "", 1),
        ("failed", "a NaN", 1),
    ]


def test_what_breaks_the_process_is_the_reason_of_all_of_its_runs(study_file: File, tmp_path: Path) -> None:
    machines = Stacks(lambda labels: "echo 'RuntimeError: no memory' >&2; exit 1")
    found = study(study_file(seeds=2, methods=["strict"], attempts=2), tmp_path / "out", machines, 8)
    assert found.run() == 1
    assert [(t.status, t.reason) for t in found.source.trials] == [("failed", "RuntimeError: no memory")] * 2
    assert machines.started == [["strict-seed0", "strict-seed1"]] * 2


def test_all_runs_of_a_stack_wait_where_another_process_took_the_folder_of_one(
    study_file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our look and our start: the process refuses them all, and none has failed."""
    machines = Stacks(lambda labels: finish(labels) if len(machines.started) > 1 else "exit 2")
    owners = [Owner.here()]

    def holder(folder: Path) -> Owner | None:
        return owners.pop() if owners and machines.started and folder.name == "strict-seed1" else None

    monkeypatch.setattr(scheduler_module, "holder", holder)
    found = study(study_file(seeds=3, methods=["strict"]), tmp_path / "out", machines, 8)
    assert found.run() == 0
    assert machines.started == [["strict-seed0", "strict-seed1", "strict-seed2"]] * 2
    assert [trial.attempts for trial in found.source.trials] == [1, 1, 1]
