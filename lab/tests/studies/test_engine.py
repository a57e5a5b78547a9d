"""Engines: timeouts, shares of cores and GPUs for runs of several processes, and runs that follow their starter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from equirelax_lab.studies import engine as engine_module
from equirelax_lab.studies import run as run_module
from equirelax_lab.studies.engine import Ending, LocalEngine, Process
from equirelax_lab.studies.run import Runner, fair_jobs, threads_each
from equirelax_lab.studies.spec import read_study
from equirelax_lab.studies.state import states
from equirelax_lab.studies.trials import trials
from equirelax_lab.training import leash
from equirelax_lab.training.jobs import Job
from equirelax_lab.training.machine import Machine

from equirelax.errors import ConfigError

pytestmark = pytest.mark.serial

File = Callable[..., Path]


class Scripts(LocalEngine):
    """Starts shell scripts, the n-th for the n-th start."""

    def __init__(self, *scripts: str) -> None:
        super().__init__()
        self.scripts, self.machines = list(scripts), list[Machine]()

    def start(self, job: Job, data: str | None) -> Process:
        self.machines.append(job.machine)
        job.config.write(job.folder / "config.yaml")
        words = ["sh", "-c", self.scripts[len(self.machines) - 1]]
        return Process(subprocess.Popen(words, cwd=job.folder, start_new_session=True))


def runner(path: Path, out: Path, engine: LocalEngine, jobs: int = 1) -> Runner:
    study = read_study(path)
    return Runner(study, out, states(trials(study), out), None, jobs, lambda _: None, engine)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "POLL", 0.01)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.usefixtures("_quick")
def test_a_hanging_run_is_killed_with_its_children_and_tried_again(study_file: File, tmp_path: Path) -> None:
    out = tmp_path / "out"
    engine = Scripts("sleep 60 & echo $! > child; wait", "echo '{}' > result.json")
    found = runner(study_file(methods=["strict"], timeout="0.5 s"), out, engine)
    begun = time.monotonic()
    assert found.run() == 0
    assert time.monotonic() - begun < 10
    assert (found.states[0].status, found.states[0].attempts) == ("finished", 2)
    assert gone(int((out / "strict-seed0" / "child").read_text()))


@pytest.mark.usefixtures("_quick")
def test_a_run_that_always_hangs_has_failed(study_file: File, tmp_path: Path) -> None:
    engine = Scripts("sleep 60", "sleep 60")
    found = runner(study_file(methods=["strict"], timeout="1 s"), tmp_path / "out", engine)
    assert found.run() == 1
    assert found.states[0].reason == "not finished after 1 s, the study's timeout"
    assert len(engine.machines) == 2


@pytest.mark.usefixtures("_quick")
def test_what_goes_wrong_after_the_result_does_no_harm(study_file: File, tmp_path: Path) -> None:
    """Processes of a distributed run now and then abort when they part."""
    found = runner(
        study_file(methods=["strict"], attempts=1),
        tmp_path / "out",
        Scripts("echo '{}' > result.json; kill -ABRT $$"),
    )
    assert found.run() == 0
    assert (found.states[0].status, found.states[0].reason) == ("finished", "")


@pytest.mark.usefixtures("_quick")
def test_runs_are_told_their_processes_and_threads(
    study_file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "cores", lambda: 16)
    engine = Scripts("echo '{}' > result.json")
    assert runner(study_file(methods=["strict"], devices=4), tmp_path / "out", engine, jobs=2).run() == 0
    (machine,) = engine.machines
    assert (machine.devices, machine.threads, machine.accelerator) == (4, 2, "cpu")


def test_cores_are_shared_among_runs_and_their_processes(
    study_file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "cores", lambda: 12)
    study = read_study(study_file(devices=3))
    assert fair_jobs(study, None, 100) == 4
    assert fair_jobs(study, 9, 100) == 9
    assert threads_each(4, devices=3) == 1
    assert threads_each(2, devices=3) == 2
    assert threads_each(1, devices=3) == 4
    assert threads_each(9, devices=3) == 1


def test_a_run_sees_the_gpus_that_the_fewest_are_on(
    study_file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "cores", lambda: 16)
    monkeypatch.setattr(engine_module.torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv(engine_module.GPUS, raising=False)
    study = read_study(study_file(devices=2, accelerator="gpu"))
    assert fair_jobs(study, None, 100) == 2
    assert threads_each(2, devices=2, gpu=True) == 4
    started: list[Any] = []
    codes: list[int | None] = []

    def start(job: Job, data: str | None) -> SimpleNamespace:
        number = len(started)
        started.append(job.environment)
        codes.append(None)
        return SimpleNamespace(poll=lambda: codes[number])

    monkeypatch.setattr(Job, "start", start)
    engine, trial = LocalEngine(), trials(study)[0]
    for machine in (Machine(accelerator="gpu", devices=2), Machine()):
        for _ in range(3):
            engine.start(Job(trial.config, Path(), machine), None)
    assert [each.get(engine_module.GPUS) for each in started] == ["0,1", "2,3", "0,1", None, None, None]
    codes[0], codes[2] = 0, 1  # the first two GPUs are free again, though the last start was on them
    engine.start(Job(trial.config, Path(), Machine(accelerator="gpu", devices=2)), None)
    assert started[-1] == {engine_module.GPUS: "0,1"}
    engine.start(Job(trial.config, Path(), Machine(accelerator="gpu")), None)
    codes[1] = 0
    engine.start(Job(trial.config, Path(), Machine(accelerator="gpu", devices=2)), None)
    assert started[-1] == {engine_module.GPUS: "2,3"}
    monkeypatch.setenv(engine_module.GPUS, "5,7")
    for name in ("5", "7"):
        engine.start(Job(trial.config, Path(), Machine(accelerator="gpu")), None)
        assert started[-1] == {engine_module.GPUS: name}
    monkeypatch.setattr(engine_module.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="'devices: 2' needs 2 GPUs; this machine has 1"):
        fair_jobs(study, None, 100)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90 s", 90), ("30min", 1800), ("1.5 h", 5400), ("1 d 12 h", 129600), ("2h 30 min", 9000)],
)
def test_timeouts_are_times_with_units(text: str, seconds: float, study_file: File) -> None:
    assert read_study(study_file(timeout=text)).timeout == seconds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timeout": 2}, "'timeout' is 2; expected a time with its unit"),
        ({"timeout": "2"}, "'timeout' is '2'"),
        ({"timeout": "0 h"}, "'timeout' is '0 h'"),
        ({"timeout": "2 hours"}, "'timeout' is '2 hours'"),
        ({"timeout": "-2 h"}, "'timeout' is '-2 h'"),
        ({"timeout": "9" * 400 + " d"}, "'timeout' is '9"),
        ({"timeout": [1]}, "'timeout'"),
        ({"devices": 0}, "'devices' is 0"),
        ({"devices": "two"}, "'devices' is 'two'"),
        ({"accelerator": "gpus"}, "'accelerator' is 'gpus'.*'gpu'"),
        ({"accelerator": ["gpu"]}, "'accelerator'"),
        ({"devises": 2}, "'devises'.*'devices'"),
    ],
)
def test_mistakes_in_them_are_named(changes: dict[str, Any], message: str, study_file: File) -> None:
    with pytest.raises(ConfigError, match=message):
        read_study(study_file(**changes))


FOLLOWER = """
import runpy, subprocess, sys, time
runpy.run_path(sys.argv[1])["follow_parent"]()
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
time.sleep(60)
"""
STARTER = """
import os, runpy, subprocess, sys, time
leash = runpy.run_path(sys.argv[3])["leash"]
words = [sys.executable, "-c", sys.argv[1], sys.argv[3]]
process = subprocess.Popen(words, env={**os.environ, **(leash() if sys.argv[2] == "leashed" else {})}, start_new_session=True)
print(process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["leashed", "free"])
def test_a_leashed_run_ends_with_its_starter(how: str) -> None:
    words = [sys.executable, "-c", STARTER, FOLLOWER, how, leash.__file__]  # alone: the package takes seconds
    starter = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pids = [int(starter.stdout.readline()) for _ in range(2)]  # the run's, then that of what it started
    try:
        starter.kill()
        starter.wait()
        if how == "leashed":
            assert all(map(gone, pids))
        else:
            time.sleep(1.5)
            assert all(map(alive, pids))
    finally:
        starter.stdout.close()
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


def test_a_leash_binds_the_first_process_of_a_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is none's child that leads a group: watching it would end the tests."""
    started: list[object] = []
    monkeypatch.setattr("equirelax_lab.training.leash.threading.Thread", lambda **_: started.append(1))
    monkeypatch.setattr("equirelax_lab.training.leash.os.getpgrp", os.getpid)
    for value in ("", "no number"):
        monkeypatch.setenv(leash.PARENT, value)
        leash.follow_parent()
    monkeypatch.setenv(leash.PARENT, str(os.getppid()))
    monkeypatch.setenv("LOCAL_RANK", "1")
    leash.follow_parent()
    assert not started


def test_how_a_process_ended(tmp_path: Path) -> None:
    for script, code in (("exit 3", 3), ("exit 0", 0), ("kill -KILL $$", -9)):
        process = Process(subprocess.Popen(["sh", "-c", script], start_new_session=True))
        assert process.where == ""
        process.process.wait()
        assert process.poll() == Ending(code)
