"""Lost processes of a study, and processes that use the same folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from equirelax_lab.studies.trials import read_journal
from equirelax_lab.training.lock import LOCK, Owner, holder, locked
from fault_ledger import Ledger
from forked_runs import Forks
from real_runs import PATIENCE, STUDY, epochs_done, leftovers, start, wait_until, words

pytestmark = [pytest.mark.serial, pytest.mark.timeout(3 * PATIENCE)]


def study(root: Path, tmp_path: Path) -> list[str]:
    """A study of three runs, two at a time, in tmp_path / "out"."""
    path = tmp_path / "three.yaml"
    path.write_text(STUDY)
    return ["study", "run", str(path), "--data", str(root), "--out", str(tmp_path / "out"), "--jobs", "2"]


def trial(folder: Path, command: subprocess.Popen[str]) -> int:
    """The process number of the run that works in `folder`, once it has finished an epoch."""
    assert wait_until(lambda: epochs_done(folder) >= 1, command)
    owner = Owner.read(folder / LOCK)
    assert owner is not None
    return owner.pid


@pytest.mark.slow
def test_a_killed_run_of_a_study_is_tried_again(tiny_root: Path, tmp_path: Path, ledger: Ledger) -> None:
    out = tmp_path / "out"
    command = start(study(tiny_root, tmp_path), stdout=subprocess.PIPE)
    os.kill(trial(out / "ace-seed0", command), signal.SIGKILL)
    printed, error = command.communicate(timeout=PATIENCE)
    runs = read_journal(out)["runs"]
    good = command.returncode == 0 and {run["status"] for run in runs.values()} == {"finished"}
    ledger.note("kill -9 of a study's run", survived=good and not leftovers(out))
    assert command.returncode == 0, error
    assert "broken, to be tried again (ended by SIGKILL" in printed
    assert {name: run["attempts"] for name, run in runs.items()} == {
        "ace-seed0": 2,
        "ace-seed1": 1,
        "ace-seed2": 1,
    }
    assert leftovers(out) == []


@pytest.mark.slow
def test_a_killed_study_leaves_runs_that_do_not_collide(
    forked: Forks, tiny_root: Path, tmp_path: Path, ledger: Ledger
) -> None:
    """Its run may continue for a while: the same command waits for it, and both succeed."""
    out, arguments = tmp_path / "out", study(tiny_root, tmp_path)
    first = start(arguments)
    trial(out / "ace-seed0", first)
    first.kill()
    first.communicate()
    code, log = forked.run(arguments)
    good = code == 0 and len(list(out.glob("*/result.json"))) == 3
    good = good and "in use by" not in log and not leftovers(out)
    ledger.note("kill -9 of a study", survived=good)
    assert code == 0, log
    assert good, log
    assert sum(run["status"] == "finished" for run in read_journal(out)["runs"].values()) == 3


def test_who_holds_a_folder(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with locked(tmp_path):
        owner = holder(tmp_path)
        assert owner is not None
        assert owner.pid == os.getpid()
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": "gone", "since": "2020"}))
    assert holder(tmp_path) is None, "its process is dead"


@pytest.mark.slow
def test_two_processes_want_one_folder(
    forked: Forks, tiny_root: Path, tmp_path: Path, ledger: Ledger
) -> None:
    """The second process is refused and told who holds the folder; the first continues."""
    out = tmp_path / "run"
    command = [*words(tiny_root, out, "--batch_size", "1", epochs=100)]
    first = start(command)
    assert wait_until(lambda: epochs_done(out) >= 1, first)
    code, log = forked.run([*command, "--resume"])
    good = code == 2 and f"in use by process {first.pid} on" in log
    good = good and first.poll() is None
    done = epochs_done(out)
    good = good and wait_until(lambda: epochs_done(out) > done, first)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=PATIENCE)
    ledger.note("two processes in one folder", survived=good and first.returncode == 130)
    assert good, log
    assert first.returncode == 130
    assert leftovers(out) == []
