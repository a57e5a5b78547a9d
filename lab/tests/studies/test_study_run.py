"""Running a study: broken runs are tried again, hopeless ones are listed, the rest goes on; real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from equirelax_lab.studies import run as run_module
from equirelax_lab.studies.run import Runner, fair_jobs, reason, threads_each
from equirelax_lab.studies.spec import read_study
from equirelax_lab.studies.state import JOURNAL, State, read_journal, states
from equirelax_lab.studies.trials import trials
from equirelax_lab.training.folder import RESULT
from equirelax_lab.training.jobs import LOG, Job
from equirelax_lab.training.lock import locked
from equirelax_lab.training.machine import cores

from equirelax.errors import ConfigError, FolderInUseError

pytestmark = pytest.mark.serial

File = Callable[..., Path]
Script = Callable[[Job, int], str]
DONE = "echo '{}' > result.json"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], dict[str, int]]:
    """A function (script of a job's n-th start) that makes runs shell scripts in their folders; gives starts by label."""

    def use(script: Script) -> dict[str, int]:
        starts: dict[str, int] = {}

        def start(job: Job, data: str | None) -> subprocess.Popen[bytes]:
            starts[job.label] = starts.get(job.label, 0) + 1
            job.config.write(job.folder / "config.yaml")
            with (job.folder / LOG).open("ab") as log:
                return subprocess.Popen(
                    ["sh", "-c", script(job, starts[job.label])],
                    cwd=job.folder, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip

        monkeypatch.setattr(Job, "start", start)
        monkeypatch.setattr(run_module, "POLL", 0.01)
        return starts

    return use


def runner(
    path: Path, out: Path, jobs: int = 2, show: Callable[[Sequence[State]], None] = lambda _: None
) -> Runner:
    study = read_study(path)
    return Runner(study, out, states(trials(study), out), None, jobs, show)


def statuses(found: Runner) -> dict[str, str]:
    return {state.trial.label: state.status for state in found.states}


def test_broken_runs_are_tried_again_and_hopeless_ones_listed(
    scripted: Callable[[Script], dict[str, int]], study_file: File, tmp_path: Path
) -> None:
    ends = {
        "strict-seed0": ["echo 'RuntimeError: flaky' >&2; exit 1", DONE],
        "scheduled-seed0": ["kill -KILL $$", "exit 3", "echo 'ValueError: always' >&2; exit 1", DONE],
        "strict-seed1": ["echo 'equirelax: error: no such data' >&2; exit 2", DONE],
        "scheduled-seed1": [DONE],
    }
    starts = scripted(lambda job, n: ends[job.label][n - 1])
    path, out = study_file(seeds=2, attempts=3), tmp_path / "out"
    first = runner(path, out)
    assert first.run() == 1
    assert starts == {"strict-seed0": 2, "scheduled-seed0": 3, "strict-seed1": 1, "scheduled-seed1": 1}
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

    again = runner(path, out)
    assert again.run() == 0
    assert starts == {"strict-seed0": 2, "scheduled-seed0": 4, "strict-seed1": 2, "scheduled-seed1": 1}
    assert set(statuses(again).values()) == {"finished"}
    assert not (out / "study.lock").exists()


def test_a_success_without_a_result_is_none(
    scripted: Callable[[Script], dict[str, int]], study_file: File, tmp_path: Path
) -> None:
    scripted(lambda job, n: "exit 0")
    found = runner(study_file(methods=["strict"]), tmp_path / "out")
    assert found.run() == 1
    assert "exit code 0" in found.states[0].reason


def test_as_many_at_a_time_as_asked_for(
    scripted: Callable[[Script], dict[str, int]], study_file: File, tmp_path: Path
) -> None:
    scripted(lambda job, n: f"sleep 0.1; {DONE}")
    seen: list[int] = []
    found = runner(
        study_file(seeds=4),
        tmp_path / "out",
        jobs=3,
        show=lambda all_: seen.append(sum(s.status == "running" for s in all_)),
    )
    assert found.run() == 0
    assert max(seen) == 3
    assert seen[-1] == 0


def test_interrupted_it_stops_the_runs_and_goes_on_later(
    scripted: Callable[[Script], dict[str, int]], study_file: File, tmp_path: Path
) -> None:
    """The runs answer SIGINT with exit code 130, as `equirelax train` does."""
    code = (
        "import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(130)); "
        "print('here', flush=True); time.sleep(60)"
    )  # python, for a shell cannot trap what it was started to ignore
    waits = f'exec {sys.executable} -c "{code}"'
    starts = scripted(lambda job, n: waits)
    path, out = study_file(seeds=2), tmp_path / "out"

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        logs = [out / f"{method}-seed0" / LOG for method in ("strict", "scheduled")]
        while time.monotonic() < deadline and not all(log.exists() and log.read_text() for log in logs):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    found = runner(path, out)
    assert found.run() == 130
    thread.join()
    assert set(statuses(found).values()) == {"waiting"}
    assert starts == {"strict-seed0": 1, "scheduled-seed0": 1}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    later = scripted(lambda job, n: DONE)
    assert runner(path, out).run() == 0
    assert set(later.values()) == {1}


def test_a_second_study_in_the_folder_is_refused(study_file: File, tmp_path: Path) -> None:
    found = runner(study_file(), tmp_path / "out")
    with locked(tmp_path / "out", "study.lock"), pytest.raises(FolderInUseError, match=str(os.getpid())):
        found.run()


def test_changed_settings_are_refused_and_damaged_runs_are_listed(
    scripted: Callable[[Script], dict[str, int]], study_file: File, tmp_path: Path
) -> None:
    scripted(lambda job, n: DONE)
    path, out = study_file(seeds=3), tmp_path / "out"
    assert runner(path, out).run() == 0
    with pytest.raises(ConfigError, match="epochs was 2 and is now 3"):
        runner(study_file(seeds=3, settings={"epochs": 3}), out)
    (out / "strict-seed0" / RESULT).write_text('{"half": ')
    (out / "strict-seed1" / "config.yaml").write_text("a: [")
    (out / "strict-seed2" / RESULT).unlink()
    found = runner(study_file(seeds=3), out)
    assert [s.status for s in found.states if s.trial.config.method == "strict"] == [
        "failed",
        "failed",
        "waiting",
    ]
    assert "result.json cannot be read" in found.states[0].reason
    assert found.run() == 1
    assert statuses(found)["strict-seed2"] == "finished"


def test_a_run_that_cannot_be_started_is_listed(study_file: File, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = runner(study_file(methods=["strict"]), out)
    out.mkdir()
    (out / "strict-seed0").write_text("a file in its place")
    assert found.run() == 1
    assert "could not be started" in found.states[0].reason


def test_journals_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no study's folder"):
        read_journal(tmp_path)
    for content in ("{", "[]", "{}", '{"runs": 3}'):
        (tmp_path / JOURNAL).write_text(content)
        with pytest.raises(ConfigError, match=JOURNAL):
            read_journal(tmp_path)


def test_reasons(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("old: error\n")
    position = log.stat().st_size
    assert reason(1, log, position).startswith("exit code 1, and nothing in")
    log.write_text("old: error\nTraceback\n  File\nValueError: new\n\n")
    assert reason(1, log, position) == "ValueError: new"
    assert reason(-9, log, position) == "ended by SIGKILL, as for want of memory"
    assert reason(-15, log, position) == "ended by SIGTERM"
    assert "cannot be read" in reason(1, tmp_path / "none", 0)


def test_cores_are_shared(study_file: File) -> None:
    study, four = read_study(study_file()), read_study(study_file(jobs=4))
    assert fair_jobs(study, None, 100) == cores()
    assert fair_jobs(four, None, 100) == 4
    assert fair_jobs(four, 3, 100) == 3
    assert fair_jobs(four, None, 2) == 2
    assert fair_jobs(four, None, 0) == 1
    assert threads_each(1) == cores()
    assert threads_each(10 * cores()) == 1
    with pytest.raises(ConfigError, match="--jobs is 0"):
        fair_jobs(study, 0, 5)


def test_the_journal_is_written_whole(
    scripted: Callable[[Script], dict[str, int]], study_file: File, tmp_path: Path
) -> None:
    scripted(lambda job, n: DONE)
    out = tmp_path / "out"
    contents: list[dict[str, object]] = []
    found = runner(
        study_file(seeds=3), out, show=lambda _: contents.append(json.loads((out / JOURNAL).read_text()))
    )
    assert found.run() == 0
    assert contents
    assert {path.name for path in out.iterdir() if path.is_file()} == {JOURNAL}
