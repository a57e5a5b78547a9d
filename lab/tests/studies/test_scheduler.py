"""The scheduler, with shell scripts in the place of runs: retries, timeouts, interrupts, shares of cores and GPUs, the journal
and the board."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from equirelax_lab.cli.main import main
from equirelax_lab.studies import machines as machines_module
from equirelax_lab.studies import scheduler as scheduler_module
from equirelax_lab.studies.board import Board, counts, line
from equirelax_lab.studies.machines import Ending, Job, LocalMachine, Process
from equirelax_lab.studies.scheduler import (
    Queue,
    Scheduler,
    Source,
    decided,
    failures,
    fair_jobs,
    reason,
    threads_each,
)
from equirelax_lab.studies.study import read_study, ready_names
from equirelax_lab.studies.trials import (
    JOURNAL,
    Trial,
    check_owner,
    read_journal,
    recorded,
    trials,
    write_journal,
)
from equirelax_lab.training import parent
from equirelax_lab.training.folder import CONFIG, LOG, RESULT
from equirelax_lab.training.lock import locked
from equirelax_lab.training.machine import Machine, cores
from rich.console import Console

from equirelax.errors import ConfigError, FolderInUseError

pytestmark = pytest.mark.serial

File = Callable[..., Path]
DONE = "echo '{}' > result.json"


class Scripts(LocalMachine):
    """A machine that runs shell scripts instead.

    Args:
        script: (label, number of the start) -> script, or one script for all.
    """

    def __init__(self, script: Callable[[str, int], str] | str) -> None:
        super().__init__()
        self.script = (lambda label, n: script) if isinstance(script, str) else script
        self.starts: dict[str, int] = {}
        self.machines: list[Machine] = []

    def start(self, job: Job, data: str | None) -> Process:
        label = job.folder.name
        self.starts[label] = self.starts.get(label, 0) + 1
        self.machines.append(job.machine)
        job.config.write(job.folder / CONFIG)
        with (job.folder / LOG).open("ab") as log:
            words = ["sh", "-c", self.script(label, self.starts[label])]
            return Process(
                subprocess.Popen(words, cwd=job.folder, stdout=log, stderr=log, start_new_session=True)
            )


def scheduler(
    path: Path,
    out: Path,
    machines: LocalMachine,
    jobs: int = 2,
    show: Callable[[Sequence[Trial]], None] = lambda _: None,
    stack: int = 1,
) -> Scheduler:
    study = read_study(path)
    return Scheduler(study, out, Source(trials(study, out)), None, jobs, show, machines, stack)


def statuses(found: Scheduler) -> dict[str, str]:
    return {trial.label: trial.status for trial in found.source.trials}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "POLL", 0.01)


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


def test_broken_runs_are_tried_again_and_hopeless_ones_listed(study_file: File, tmp_path: Path) -> None:
    ends = {
        "strict-seed0": ["echo 'RuntimeError: flaky' >&2; exit 1", DONE],
        "scheduled-seed0": ["kill -KILL $$", "exit 3", "echo 'ValueError: always' >&2; exit 1", DONE],
        "strict-seed1": ["echo begun; echo 'equirelax: error: no such data' >&2; exit 2", DONE],
        "scheduled-seed1": [DONE],
    }
    machines = Scripts(lambda label, n: ends[label][n - 1])
    path, out = study_file(seeds=2, attempts=3), tmp_path / "out"
    first = scheduler(path, out, machines)
    assert first.run() == 1
    assert machines.starts == {
        "strict-seed0": 2,
        "scheduled-seed0": 3,
        "strict-seed1": 1,
        "scheduled-seed1": 1,
    }
    assert statuses(first) == {
        "strict-seed0": "finished",
        "scheduled-seed0": "failed",
        "strict-seed1": "failed",
        "scheduled-seed1": "finished",
    }
    runs = read_journal(out)["runs"]
    assert runs["strict-seed1"] == {"status": "failed", "attempts": 1, "reason": "no such data"}
    assert runs["scheduled-seed0"] == {"status": "failed", "attempts": 3, "reason": "ValueError: always"}
    assert runs["strict-seed0"]["reason"] == ""
    text = failures(first.source.trials)
    assert f"  strict-seed1: no such data\n    the end of {out / 'strict-seed1' / LOG}:" in text
    assert "strict-seed0" not in text

    # the same, read without the study's file; a folder without a journal shows what is in it
    found = {each.label: each for each in recorded(out)}
    assert found["strict-seed1"].reason == "no such data"
    assert found["strict-seed1"].config == next(
        t.config for t in trials(read_study(path)) if t.label == "strict-seed1"
    )
    (out / JOURNAL).unlink()
    assert {each.label: each.status for each in recorded(out)} == {
        "strict-seed0": "finished",
        "scheduled-seed0": "waiting",
        "strict-seed1": "waiting",
        "scheduled-seed1": "finished",
    }

    again = scheduler(path, out, machines)
    assert again.run() == 0
    assert machines.starts == {
        "strict-seed0": 2,
        "scheduled-seed0": 4,
        "strict-seed1": 2,
        "scheduled-seed1": 1,
    }
    assert set(statuses(again).values()) == {"finished"}
    assert failures(again.source.trials) == ""
    assert not (out / "study.lock").exists()


def test_a_hanging_run_is_killed_with_its_children_and_tried_again(study_file: File, tmp_path: Path) -> None:
    out = tmp_path / "out"
    machines = Scripts(lambda _, n: "sleep 60 & echo $! > child; wait" if n == 1 else DONE)
    found = scheduler(study_file(methods=["strict"], timeout="0.5 s"), out, machines)
    begun = time.monotonic()
    assert found.run() == 0
    assert time.monotonic() - begun < 10
    (trial,) = found.source.trials
    assert (trial.status, trial.attempts) == ("finished", 2)
    assert gone(int((out / "strict-seed0" / "child").read_text()))


def test_a_run_that_always_hangs_has_failed(study_file: File, tmp_path: Path) -> None:
    found = scheduler(study_file(methods=["strict"], timeout="1 s"), tmp_path / "out", Scripts("sleep 60"))
    assert found.run() == 1
    (trial,) = found.source.trials
    assert (trial.reason, trial.attempts) == ("not finished after 1 s, the study's timeout", 2)


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        # processes of a distributed run now and then abort when they part
        (f"{DONE}; kill -ABRT $$", "finished", ""),
        ("exit 0", "failed", "exit code 0, and nothing in"),
    ],
)
def test_a_run_has_finished_if_it_has_a_result(
    script: str, status: str, words: str, study_file: File, tmp_path: Path
) -> None:
    found = scheduler(study_file(methods=["strict"], attempts=1), tmp_path / "out", Scripts(script))
    assert found.run() == (status == "failed")
    (trial,) = found.source.trials
    assert trial.status == status
    assert words in trial.reason


def test_a_run_that_cannot_be_started_is_listed(study_file: File, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = scheduler(study_file(methods=["strict"]), out, LocalMachine())
    out.mkdir()
    (out / "strict-seed0").write_text("a file in its place")
    assert found.run() == 1
    assert "could not be started" in found.source.trials[0].reason


def test_as_many_at_a_time_as_wanted_and_a_journal_that_is_always_whole(
    study_file: File, tmp_path: Path
) -> None:
    seen: list[int] = []
    out = tmp_path / "out"

    def show(all_: Sequence[Trial]) -> None:
        seen.append(sum(trial.status == "running" for trial in all_))
        json.loads((out / JOURNAL).read_text())

    assert scheduler(study_file(seeds=4), out, Scripts(f"sleep 0.1; {DONE}"), jobs=3, show=show).run() == 0
    assert max(seen) == 3
    assert seen[-1] == 0
    assert {path.name for path in out.iterdir() if path.is_file()} == {JOURNAL}


def test_interrupted_it_stops_the_runs_and_goes_on_later(study_file: File, tmp_path: Path) -> None:
    """The runs answer SIGINT with exit code 130, as `equirelax train` does."""
    code = (
        "import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(130)); "
        "print('here', flush=True); time.sleep(60)"
    )  # python, for a shell cannot trap what it was started to ignore
    waits = Scripts(f'exec {sys.executable} -c "{code}"')
    path, out = study_file(seeds=2), tmp_path / "out"

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        logs = [out / f"{method}-seed0" / LOG for method in ("strict", "scheduled")]
        while time.monotonic() < deadline and not all(log.exists() and log.read_text() for log in logs):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    found = scheduler(path, out, waits)
    assert found.run() == 130
    thread.join()
    assert set(statuses(found).values()) == {"waiting"}
    assert waits.starts == {"strict-seed0": 1, "scheduled-seed0": 1}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    later = Scripts(DONE)
    assert scheduler(path, out, later).run() == 0
    assert list(later.starts.values()) == [1] * 4


def test_a_second_study_in_the_folder_is_refused(study_file: File, tmp_path: Path) -> None:
    found = scheduler(study_file(), tmp_path / "out", LocalMachine())
    with locked(tmp_path / "out", "study.lock"), pytest.raises(FolderInUseError, match=str(os.getpid())):
        found.run()


def test_runs_that_others_work_on_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs: list[Any] = [SimpleNamespace(folder=tmp_path / name, grid="", kind=name) for name in "abcd"]
    queue = Queue(runs)
    with locked(tmp_path / "a"):
        assert queue.take(0) == []
        assert queue.take(1) == [], "the one that goes on uses a core"
        assert queue.take(2) == [[runs[1]]]
        assert f"a: process {os.getpid()} on" in capsys.readouterr().err
        assert len(queue) == 3
    assert queue.take(2) == [[runs[0]], [runs[2]]]
    queue.append(runs[1])
    assert queue.take(5) == [[runs[3]], [runs[1]]]
    assert capsys.readouterr().err == "", "it was said once"


def test_a_stack_of_another_process_takes_one_place(tmp_path: Path) -> None:
    runs: list[Any] = [SimpleNamespace(folder=tmp_path / name, grid="", kind=name) for name in "abc"]
    queue = Queue(runs, stack=2)
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        assert queue.take(1) == []
        assert queue.take(2) == [[runs[2]]]


def test_changed_settings_are_refused_and_damaged_runs_are_listed(study_file: File, tmp_path: Path) -> None:
    path, out, machines = study_file(seeds=3), tmp_path / "out", Scripts(DONE)
    assert scheduler(path, out, machines).run() == 0
    with pytest.raises(ConfigError, match=r"strict-seed0 .*epochs was 2 and is now 3.*--out"):
        scheduler(study_file(seeds=3, settings={"epochs": 3}), out, machines)
    (out / "strict-seed0" / RESULT).write_text('{"half": ')
    (out / "strict-seed1" / CONFIG).write_text("a: [")
    (out / "strict-seed2" / RESULT).unlink()
    found = scheduler(study_file(seeds=3), out, machines)
    strict = [trial for trial in found.source.trials if trial.config.method == "strict"]
    assert [trial.status for trial in strict] == ["failed", "failed", "waiting"]
    assert "result.json cannot be read" in strict[0].reason
    assert found.run() == 1
    assert strict[2].status == "finished"
    assert {each.label: each.config is None for each in recorded(out)}["strict-seed1"]


def test_journals_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a study"):
        read_journal(tmp_path)
    for content in ("{", "[]", "{}", '{"runs": 3}'):
        (tmp_path / JOURNAL).write_text(content)
        with pytest.raises(ConfigError, match=JOURNAL):
            recorded(tmp_path)


def test_the_folder_of_another_study_is_refused(
    study_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first, other = (read_study(study_file(name)) for name in ("first", "other"))
    write_journal(out, first, trials(first, out))
    before = (out / JOURNAL).read_text()
    check_owner(first, out)
    for study in (other, dataclasses.replace(first, small=True)):
        with pytest.raises(ConfigError, match=f"{re.escape(str(out))}.*--out"):
            check_owner(study, out)
    ready = next(iter(ready_names(searches=True)))
    for words in (["study", "run", str(study_file("other"))], ["compare", "nbody"], ["search", ready]):
        assert main([*words, "--out", str(out)]) == 2
        assert "is the folder of the study first" in capsys.readouterr().err
        assert (out / JOURNAL).read_text() == before
    write_journal(out, other, [])
    check_owner(other, out)


def test_reasons(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("old: error\n")
    position = log.stat().st_size
    assert reason(1, log, position).startswith("exit code 1, and nothing in")
    log.write_text("old: error\nTraceback\n  File\nValueError: new\n\n")
    assert reason(1, log, position) == "ValueError: new"
    assert reason(-9, log, position) == "ended by SIGKILL, as when memory runs out"
    assert reason(-15, log, position) == "ended by SIGTERM"
    assert "cannot be read" in reason(1, tmp_path / "none", 0)


def test_how_a_process_ended() -> None:
    for script, code in (("exit 3", 3), ("exit 0", 0), ("kill -KILL $$", -9)):
        process = Process(subprocess.Popen(["sh", "-c", script], start_new_session=True))
        assert process.where == ""
        process.process.wait()
        assert process.poll() == Ending(code)


def test_cores_are_shared_among_runs_and_their_processes(
    study_file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    study, four = read_study(study_file()), read_study(study_file(jobs=4))
    assert fair_jobs(study, None, 100) == cores()
    assert [fair_jobs(four, wanted, left) for wanted, left in ((None, 100), (3, 100), (None, 2), (None, 0))] == [
        4, 3, 2, 1,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="--jobs is 0"):
        fair_jobs(study, 0, 5)
    assert threads_each(1) == cores()
    assert threads_each(10 * cores()) == 1

    monkeypatch.setattr(machines_module, "cores", lambda: 12)
    three = read_study(study_file(devices=3))
    assert (fair_jobs(three, None, 100), fair_jobs(three, 9, 100)) == (4, 9)
    assert [threads_each(jobs, devices=3) for jobs in (1, 2, 4, 9)] == [4, 2, 1, 1]
    for limit, threads in (("1", 1), ("3", 3), ("2,1", 2), ("99", 4), ("", 4), ("0", 4), ("many", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
        assert threads_each(1, devices=3) == threads
    monkeypatch.delenv("OMP_NUM_THREADS")

    monkeypatch.setattr(machines_module, "cores", lambda: 16)
    machines = Scripts(DONE)
    assert scheduler(study_file(methods=["strict"], devices=4), tmp_path / "out", machines).run() == 0
    (machine,) = machines.machines
    assert (machine.devices, machine.threads, machine.accelerator) == (4, 2, "cpu")


def test_a_run_sees_the_gpus_that_the_fewest_are_on(
    study_file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machines_module, "cores", lambda: 16)
    monkeypatch.setattr(machines_module.torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv(machines_module.GPUS, raising=False)
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
    here, config = LocalMachine(), trials(study)[0].config
    pair = Machine(accelerator="gpu", devices=2)
    for machine in (pair, Machine()):
        for _ in range(3):
            here.start(Job(config, Path(), machine), None)
    gpus = machines_module.GPUS
    assert [each.get(gpus) for each in started] == ["0,1", "2,3", "0,1", None, None, None]
    codes[0], codes[2] = 0, 1  # the first two GPUs are free again, though the last start was on them
    here.start(Job(config, Path(), pair), None)
    assert started[-1] == {gpus: "0,1"}
    here.start(Job(config, Path(), Machine(accelerator="gpu")), None)
    codes[1] = 0
    here.start(Job(config, Path(), pair), None)
    assert started[-1] == {gpus: "2,3"}
    monkeypatch.setenv(gpus, "5,7")
    for name in ("5", "7"):
        here.start(Job(config, Path(), Machine(accelerator="gpu")), None)
        assert started[-1] == {gpus: name}
    monkeypatch.setattr(machines_module.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="'devices: 2' needs 2 GPUs; this machine has 1"):
        fair_jobs(study, None, 100)


def test_auto_takes_gpus_where_a_run_finds_enough(study_file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    study = read_study(study_file(devices=2, accelerator="auto"))
    for gpus, accelerator in ((0, "cpu"), (1, "cpu"), (2, "gpu"), (8, "gpu")):
        monkeypatch.setattr(machines_module.torch.cuda, "device_count", lambda gpus=gpus: gpus)
        monkeypatch.setattr(machines_module, "cores", lambda: 16)
        assert decided(study).machine.accelerator == accelerator
        assert decided(study).on_gpu == (accelerator == "gpu")
        assert Machine(accelerator="auto", devices=2).resolved(gpus).accelerator == accelerator
    for named in ("cpu", "gpu"):
        other = read_study(study_file(accelerator=named))
        assert decided(other) == other


FOLLOWER = """
import runpy, subprocess, sys, time
runpy.run_path(sys.argv[1])["follow_parent"]()
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
time.sleep(60)
"""
STARTER = """
import os, runpy, subprocess, sys, time
variables = runpy.run_path(sys.argv[3])["end_with_this_process"]() if sys.argv[2] == "bound" else {}
words = [sys.executable, "-c", sys.argv[1], sys.argv[3]]
process = subprocess.Popen(words, env={**os.environ, **variables}, start_new_session=True)
print(process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["bound", "free"])
def test_a_run_may_be_made_to_end_with_its_starter(how: str) -> None:
    words = [
        sys.executable,
        "-c",
        STARTER,
        FOLLOWER,
        how,
        parent.__file__,
    ]  # alone: the package takes seconds
    starter = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pids = [int(starter.stdout.readline()) for _ in range(2)]  # the run's, then that of what it started
    try:
        starter.kill()
        starter.wait()
        if how == "bound":
            assert all(map(gone, pids))
        else:
            time.sleep(1.5)
            assert all(map(alive, pids))
    finally:
        starter.stdout.close()
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


def test_only_the_first_process_of_a_run_watches_its_starter(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(parent.threading, "Thread", lambda **_: started.append(1))
    monkeypatch.setattr(parent.os, "getpgrp", os.getpid)
    for value in ("", "no number"):
        monkeypatch.setenv(parent.PARENT, value)
        parent.follow_parent()
    monkeypatch.setenv(parent.PARENT, str(os.getppid()))
    monkeypatch.setenv("LOCAL_RANK", "1")
    parent.follow_parent()
    assert not started


@pytest.fixture
def shown(study_file: File, tmp_path: Path) -> list[Trial]:
    """Six trials, in all states."""
    found = trials(read_study(study_file(seeds=3, settings={"epochs": 10})), tmp_path)
    found[1].status, found[1].attempts = "running", 2
    found[2].status, found[2].reason = "failed", "no [data]"
    found[3].status = "finished"
    found[1].folder.mkdir()
    (found[1].folder / "metrics.csv").write_text("epoch,val/best,seconds\n0,,2.0\n3,0.123456,8.0\n4,0.1")
    return found


def drawn(trials_: list[Trial], height: int = 40) -> str:
    """What a terminal shows."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=110, height=height, color_system=None)
    with Board("Title", console=console) as board:
        board.show(trials_)
    return stream.getvalue()


def test_a_terminal_shows_a_table(shown: list[Trial]) -> None:
    text = drawn(shown)
    row = next(row for row in text.splitlines() if "running, attempt 2" in row)
    # four of ten epochs in eight seconds: twelve are left
    assert all(part in row for part in ("scheduled-seed0", "4/10", "0.1235", "12 s"))
    assert "failed: no [data]" in text
    assert "1 of 6 runs finished, 1 running, 3 waiting, 1 failed" in text
    shown[1].where = "node-b"
    assert "running on node-b, attempt 2" in drawn(shown)
    low = drawn(shown, height=5)
    assert "scheduled-seed0" in low
    assert "scheduled-seed2" not in low


def test_the_time_left_counts_runs_that_wait(shown: list[Trial]) -> None:
    board = Board("T", console=Console(file=io.StringIO()))
    # 2 s an epoch: six epochs of the one that runs, ten of each of the three that wait
    assert board.left(shown) == "about 1 min left"
    shown[0].status = "running"
    assert board.left(shown) == "about 36 s left"  # (12 + 20 + 2 * 20) / 2
    shown[0].status, shown[1].status = "waiting", "waiting"
    assert board.left(shown) == ""
    assert Board("T", console=Console(file=io.StringIO())).left(shown) == ""


def test_elsewhere_changes_are_lines(shown: list[Trial], capsys: pytest.CaptureFixture[str]) -> None:
    with Board("T", console=Console(file=io.StringIO())) as board:
        board.show(shown)
        assert capsys.readouterr().out == ""
        shown[0].status = "running"
        shown[1].status, shown[1].note = "finished", "0.1 (rate 2)"
        shown[4].attempts, shown[4].reason = 1, "ended by SIGKILL"
        board.show(shown)
        shown[5].status, shown[5].reason = "failed", "diverged"
        board.show(shown)
    assert capsys.readouterr().out.splitlines() == [
        "scheduled-seed0: finished: 0.1 (rate 2)",
        "strict-seed2: broken, to be tried again (ended by SIGKILL)",
        "scheduled-seed2: failed (diverged)",
    ]


def test_lines_say_where_the_runs_are(shown: list[Trial]) -> None:
    assert line(shown) == f"{counts(shown)};\n  scheduled-seed0: epoch 4/10"
    shown[0].status = "running"
    told = line(shown, 9, "about 1 h 2 min left")
    assert max(map(len, told.splitlines())) <= 80
    assert " ".join(told.split()).endswith(
        "; about 1 h 2 min left; strict-seed0: epoch 0/10; scheduled-seed0: epoch 4/10"
    )
    assert line(shown, 9).startswith("1 of 9 runs finished")
