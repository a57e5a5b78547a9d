"""Ctrl-C and SIGTERM: the run can be continued, and the message says how."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from fault_ledger import Ledger
from forked_runs import Forks
from real_runs import FLAGS, PATIENCE, STUDY, differences, epochs_done, leftovers, start, wait_until, words

pytestmark = [pytest.mark.serial, pytest.mark.timeout(3 * PATIENCE)]

SIGNALS = [signal.SIGINT, signal.SIGTERM]
EPOCHS = 8
SLOW_EPOCHS = ["--batch_size", "1"]
"""The signal must come well before the last epoch, however busy the machine is."""


def name(number: signal.Signals, twice: bool = False) -> str:
    return f"{number.name}{' twice' if twice else ''}"


@pytest.fixture(scope="module")
def straight(forked: Forks, tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("straight") / "run"
    code, log = forked.run(words(tiny_root, out, *SLOW_EPOCHS, epochs=EPOCHS))
    assert code == 0, log
    return out


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_stops_after_its_epoch_and_goes_on(
    number: signal.Signals, forked: Forks, straight: Path, tiny_root: Path, tmp_path: Path, ledger: Ledger
) -> None:
    out = tmp_path / "run"
    process = start(words(tiny_root, out, *SLOW_EPOCHS, epochs=EPOCHS))
    assert wait_until(lambda: epochs_done(out) >= 2, process)
    process.send_signal(number)
    error = process.communicate(timeout=PATIENCE)[1]
    stopped = process.returncode == 130 and "--resume" in error and "Traceback" not in error
    done = epochs_done(out)
    code, log = forked.run(words(tiny_root, out, *SLOW_EPOCHS, "--resume", epochs=EPOCHS))
    good = stopped and done < EPOCHS and code == 0 and not differences(straight, out)
    ledger.note(f"{name(number)} during a run", survived=good)
    assert stopped, (process.returncode, error)
    assert done < EPOCHS
    assert code == 0, log
    assert differences(straight, out) == []
    assert leftovers(out) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_twice_is_at_once(number: signal.Signals, tiny_root: Path, tmp_path: Path, ledger: Ledger) -> None:
    """During an epoch of more than a minute, which would not end before."""
    out = tmp_path / "run"
    process = start(words(tiny_root, out, *SLOW_EPOCHS, "--network.hidden", "96", "--network.layers", "12"))
    assert wait_until((out / "tensorboard").exists, process)  # made when all is ready for the first epoch
    time.sleep(1)
    process.send_signal(number)
    assert process.stderr is not None
    assert "again: at once" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(number)
    error = process.communicate(timeout=PATIENCE)[1]
    good = process.returncode == 130 and "--resume" in error and "Traceback" not in error
    good = good and epochs_done(out) == 0 and not leftovers(out)
    ledger.note(f"{name(number, twice=True)} during a run", survived=good)
    assert process.returncode == 130, error
    assert "--resume" in error
    assert "Traceback" not in error
    assert epochs_done(out) == 0
    assert leftovers(out) == []


def grid(command: str, root: Path, tmp_path: Path) -> list[str]:
    """A comparison or a study of three runs, two at a time, in tmp_path / "out"."""
    common = ["--data", str(root), "--out", str(tmp_path / "out"), "--jobs", "2"]
    if command == "compare":
        chosen = [*FLAGS[: FLAGS.index("--method")], *FLAGS[FLAGS.index("--method") + 2 :]]
        epochs = [*SLOW_EPOCHS, "--epochs", str(EPOCHS), "--methods", "ace", "--seeds", "3"]
        return ["compare", "nbody", *chosen, *epochs, *common]
    path = tmp_path / "three.yaml"
    path.write_text(STUDY)
    return ["study", "run", str(path), *common]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "twice"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)]
)
@pytest.mark.parametrize("command", ["compare", "study"])
def test_many_runs_stop_and_go_on(
    command: str,
    number: signal.Signals,
    twice: bool,
    forked: Forks,
    tiny_root: Path,
    tmp_path: Path,
    ledger: Ledger,
) -> None:
    arguments, first = grid(command, tiny_root, tmp_path), tmp_path / "out" / "ace-seed0"
    process = start(arguments)
    assert wait_until(lambda: epochs_done(first) >= 2, process)
    process.send_signal(number)
    if twice:
        time.sleep(0.3)
        process.send_signal(number)
    error = process.communicate(timeout=PATIENCE)[1]
    stopped = process.returncode == 130 and "the same command goes on" in error and "Traceback" not in error
    begun = [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()]
    code, log = forked.run(arguments)
    results = len(list((tmp_path / "out").glob("*/result.json")))
    good = stopped and code == 0 and results == 3 and not leftovers(tmp_path / "out")
    ledger.note(
        f"{name(number, twice)} during a {'comparison' if command == 'compare' else 'study'}", survived=good
    )
    assert stopped, (process.returncode, error)
    assert set(begun) == {"ace-seed0", "ace-seed1"}, "no further run is started"
    assert code == 0, log
    assert results == 3
    assert leftovers(tmp_path / "out") == []


@pytest.fixture(scope="module")
def start_seconds(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds until a run starts to train."""
    out, began = tmp_path_factory.mktemp("warm") / "run", time.monotonic()
    process = start(words(tiny_root, out, epochs=1))
    assert wait_until((out / "tensorboard").exists, process)
    seconds = time.monotonic() - began
    process.kill()
    process.communicate()
    return seconds


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_signal_before_the_first_epoch(
    share: float,
    number: signal.Signals,
    forked: Forks,
    straight: Path,
    start_seconds: float,
    tiny_root: Path,
    tmp_path: Path,
    ledger: Ledger,
) -> None:
    """At some instant before the first epoch: the process ends, and the same command continues."""
    out = tmp_path / "run"
    process = start(words(tiny_root, out, *SLOW_EPOCHS, epochs=EPOCHS))
    time.sleep(share * start_seconds)
    process.send_signal(number)
    error = process.communicate(timeout=PATIENCE)[1]
    # before Python runs a line of ours, the system answers the signal
    stopped = process.returncode in (130, -number)
    code, log = forked.run(words(tiny_root, out, *SLOW_EPOCHS, "--resume", epochs=EPOCHS))
    good = stopped and code == 0 and not differences(straight, out) and not leftovers(out)
    ledger.note(f"{name(number)} during the start of a run", survived=good)
    assert stopped, (process.returncode, error)
    assert code == 0, log
    assert differences(straight, out) == []
    assert leftovers(out) == []
