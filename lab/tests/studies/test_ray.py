"""Studies on a Ray cluster of real nodes (on loopback): real runs, a lost node, and a node that does not see the folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from equirelax_lab.cli import main
from equirelax_lab.studies.cluster import Node, RayCluster, RemoteAttempt, connected, look, unblocked
from equirelax_lab.studies.machines import Ending
from equirelax_lab.studies.study import read_study
from equirelax_lab.studies.trials import JOURNAL, trials
from equirelax_lab.training.folder import RESULT
from equirelax_lab.training.machine import Machine
from ray_cluster import Nodes, nodes
from study_process import ended, processes_of, rows, study_run, wait_until

import equirelax
from equirelax.errors import ConfigError

pytestmark = pytest.mark.serial

File = Callable[..., Path]
NETWORK = {"layers": 1, "hidden": 16}
SHORT = {"epochs": 2, "batch_size": 20, "validate_every": 1, "network": NETWORK}
LONG = {"epochs": 2000, "batch_size": 8, "validate_every": 1, "checkpoint_every": 5, "network": NETWORK}
DATA = {"train": 48, "val": 24, "test": 24}


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Nodes]:
    """A cluster of the nodes a and b with one core each."""
    with nodes("a", "b") as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _data(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIRELAX_DATA", str(tiny_root))


def journal(out: Path) -> dict[str, Any]:
    runs: dict[str, Any] = json.loads((out / JOURNAL).read_text())["runs"]
    return runs


def trained_here(path: Path, run: str, out: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv of a study's run, trained in this process."""
    from equirelax_lab.training.run import train

    (trial,) = (trial for trial in trials(read_study(path)) if trial.label == run)
    train(trial.config, out / run, machine=Machine(progress=False))
    return rows(out / run)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_on_two_nodes_is_what_it_is_here(two_nodes: Nodes, study_file: File, tmp_path: Path) -> None:
    path, there = study_file(settings={**SHORT, "dataset": DATA}), tmp_path / "there"
    with study_run(path, there, "--ray", two_nodes.address) as process:
        code, text = ended(process)
    assert code == 0, text
    runs = journal(there)
    assert {run["status"] for run in runs.values()} == {"finished"}
    assert {run["where"] for run in runs.values()} == {"a", "b"}
    assert "| scheduled |" in text
    for run in runs:
        assert rows(there / run) == trained_here(path, run, tmp_path / "here")
        assert not processes_of(there / run)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_interrupted_it_goes_on_where_it_was(two_nodes: Nodes, study_file: File, tmp_path: Path) -> None:
    path, out = study_file(settings={**LONG, "dataset": DATA}), tmp_path / "out"
    folders = [out / "strict-seed0", out / "scheduled-seed0"]
    with study_run(path, out, "--ray", two_nodes.address) as process:
        wait_until(lambda: all(len(rows(run)) > 2 for run in folders), process)
        process.send_signal(signal.SIGINT)
        code, text = ended(process)
    assert code == 130, text
    assert "the same command goes on" in text
    assert not any((run / RESULT).exists() or processes_of(run) for run in folders)
    assert all((run / "last.ckpt").exists() for run in folders)
    done = max(len(rows(run)) for run in folders)
    with study_run(path, out, "--ray", two_nodes.address) as process:
        wait_until(lambda: all(len(rows(run)) > done for run in folders), process)
        process.kill()  # now the hard way: nobody is left to tell the runs
    deadline = time.monotonic() + 60
    while any(map(processes_of, folders)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(processes_of, folders))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_lost_node_ran_is_run_elsewhere(study_file: File, tmp_path: Path) -> None:
    path, out = study_file(settings={**LONG, "epochs": 60, "dataset": DATA}), tmp_path / "out"
    folders = [out / "strict-seed0", out / "scheduled-seed0"]
    with nodes("a", "b") as cluster, study_run(path, out, "--ray", cluster.address) as process:
        wait_until(lambda: all(len(rows(run)) > 10 for run in folders), process)
        lost = next(name for name, run in journal(out).items() if run.get("where") == "b")
        cluster.lose("b")
        code, text = ended(process)
    assert code == 0, text
    runs = journal(out)
    assert {run["status"] for run in runs.values()} == {"finished"}
    assert (runs[lost]["where"], runs[lost]["attempts"]) == ("a", 2)
    assert f"{lost}: broken, to be tried again (node b was lost" in text
    assert rows(out / lost) == trained_here(path, lost, tmp_path / "here")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_does_not_see_the_folder_is_named(
    two_nodes: Nodes, study_file: File, tmp_path: Path
) -> None:
    """A third node has something else mounted at the study's folder."""
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(out)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    with two_nodes.without("c", out), study_run(study_file(), out, "--ray", two_nodes.address) as process:
        code, text = ended(process)
    assert code == 2, text
    assert f"c does not see {out} as this machine does" in text
    assert "--out" in text
    assert "Traceback" not in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_that_no_node_can_take_are_refused(
    two_nodes: Nodes, study_file: File, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for changes, message in (
        ({"devices": 2}, "has the 2 cores of a run with 'devices: 2' (a: 1 cores, 0 GPUs; b: 1 cores"),
        ({"accelerator": "gpu"}, "has the 1 core and 1 GPU of a run"),
    ):
        words = ["study", "run", str(study_file(**changes)), "--out", str(tmp_path / "out")]
        assert main([*words, "--ray", two_nodes.address]) == 2
        assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.2:1", "nowhere", "ray://127.0.0.2:1"])
def test_addresses_where_no_cluster_is(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    begun, before = time.monotonic(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConfigError, match=f"--ray {address}: .*ray start --head"), connected(address):
        pytest.fail("there is no cluster")
    assert signal.getsignal(signal.SIGTERM) == before
    assert time.monotonic() - begun < 60  # Ray alone goes on for minutes


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r"pip install \"ray"),
        connected("auto"),
    ):
        pytest.fail("there is no Ray")


def test_what_a_node_sees(tmp_path: Path) -> None:
    version = equirelax.__version__
    (tmp_path / "study.lock").write_text("owner")
    assert look(tmp_path, "owner", version, 0) == ""
    assert look(tmp_path, "another", version, 0) == f"does not see {tmp_path} as this machine does"
    assert look(tmp_path / "none", "owner", version, 0).startswith("does not see")
    assert look(tmp_path, "owner", "0.0.1", 0) == f"has equirelax {version}, and this machine 0.0.1"
    begun = time.monotonic()
    assert look(tmp_path, "late", version, 0.4) != ""
    assert time.monotonic() - begun > 0.3


def test_runs_hear_signals_that_their_starter_blocks() -> None:
    blocked = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    words = [sys.executable, "-c", "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))"]
    try:
        deaf = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        with unblocked(*blocked):
            hears = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert blocked <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert "SIGINT" in deaf
    assert "SIGTERM" in deaf
    assert "SIG" not in hears


def test_runs_fit_whole_on_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Node("1", "x", 3, 1), Node("2", "y", 8, 0), Node("3", "z", 4, 4)]
    monkeypatch.setattr(RayCluster, "nodes", lambda self: found)
    cluster = RayCluster(None, "auto")
    assert cluster.slots(1, 1, False) == 15
    assert cluster.slots(2, 1, False) == 7
    assert cluster.slots(2, 2, False) == 3
    assert cluster.slots(1, 1, True) == 5
    assert cluster.slots(2, 1, True) == 2
    assert cluster.slots(8, 2, False) == 0
    with pytest.raises(ConfigError, match=r"'devices: 9'.*x: 3 cores, 1 GPUs; y"):
        cluster.slots(9, 1, False)
    with pytest.raises(ConfigError, match="5 cores and 5 GPUs"):
        cluster.slots(5, 1, True)


class FakeRay:
    """A stand-in for Ray that gives an actor's answers one after the other, or raises them."""

    class exceptions:
        class RayError(Exception): ...

        class ActorUnavailableError(RayError): ...

    def __init__(self, *answers: Any) -> None:
        self.answers, self.killed, self.told = list(answers), 0, list[str]()
        self.poll, self.interrupt, self.kill_run = (
            SimpleNamespace(remote=lambda word=word: self.told.append(word))
            for word in ("poll", "interrupt", "kill")
        )

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        assert timeout == 0
        return (references, []) if self.answers else ([], references)

    def get(self, reference: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor: Any) -> None:
        self.killed += 1


def attempt(*answers: Any) -> tuple[RemoteAttempt, FakeRay]:
    fake = FakeRay(*answers)
    actor = SimpleNamespace(poll=fake.poll, interrupt=fake.interrupt, kill=fake.kill_run)
    return RemoteAttempt(fake, actor, {"1": "x"}), fake


def test_a_try_is_followed_to_its_end() -> None:
    gone_for_now = FakeRay.exceptions.ActorUnavailableError()
    found, fake = attempt(("1", None), gone_for_now, ("1", Ending(3)))
    assert found.where is None
    assert (found.poll(), found.where, found.poll()) == (None, "x", None)
    found.interrupt()
    found.kill()
    assert fake.told == ["poll", "poll", "interrupt", "kill"]
    assert found.poll() == Ending(3) == found.poll()
    assert fake.killed == 1


def test_an_unanswered_question_is_not_asked_again() -> None:
    found, fake = attempt()
    fake.poll = found.actor.poll = SimpleNamespace(remote=lambda: fake.told.append("poll") or object())
    assert [found.poll() for _ in range(3)] == [None] * 3
    assert fake.told == ["poll"]


def test_a_try_that_waits_for_a_place_is_given_up_when_interrupted() -> None:
    found, fake = attempt()
    assert found.poll() is None
    found.interrupt()
    assert found.poll() == Ending(-signal.SIGINT)
    assert fake.killed == 1
    assert "interrupt" not in fake.told


def test_lost_nodes_and_troubles_on_nodes_are_said() -> None:
    found, _ = attempt(("1", None), FakeRay.exceptions.RayError("The actor died.\nmore"))
    found.poll()
    assert found.poll() == Ending(None, "node x was lost (The actor died.)")
    assert attempt(FakeRay.exceptions.RayError(""))[0].poll() == Ending(None, "its node was lost (RayError)")
    ending = attempt(("7", Ending(None, "may not write to /out")))[0].poll()
    assert ending == Ending(None, "node 7 may not write to /out")
