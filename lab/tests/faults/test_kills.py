"""kill -9 at any moment: the resumed run equals an undisturbed one, and no partial file stays."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from equirelax_lab.cli import main
from equirelax_lab.training.folder import BEST, CONFIG, LAST, METRICS, RESULT
from fault_ledger import Ledger
from forked_runs import Forks
from real_runs import EPOCHS, PATIENCE, differences, epochs_done, leftovers, start, wait_until, words

pytestmark = [pytest.mark.serial, pytest.mark.timeout(3 * PATIENCE)]

KILL, WRITE, MAKE = "kill -9 during a run", "kill -9 inside a write", "kill -9 while data is made"
MOMENTS = ["writing", "epoch", "start", "conclusion", "epoch"] * 4


@pytest.fixture(scope="module")
def straight(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """An undisturbed run: its folder, and the seconds of its start, an epoch and its end."""
    out = tmp_path_factory.mktemp("straight") / "run"
    began = time.monotonic()
    process = start(words(tiny_root, out))
    assert wait_until(lambda: epochs_done(out) > 0, process)
    first = time.monotonic() - began
    assert wait_until(lambda: epochs_done(out) == EPOCHS, process)
    last = time.monotonic() - began
    assert process.wait(timeout=PATIENCE) == 0
    end = time.monotonic() - began
    return out, {"start": first, "epoch": (last - first) / EPOCHS, "conclusion": end - last}


def kill(
    process: subprocess.Popen[str], out: Path, moment: str, seconds: dict[str, float], dice: random.Random
) -> bool:
    """Kill the process at a random instant of a part of the run; False if it ended before."""
    epoch = {"start": 0, "conclusion": EPOCHS}.get(moment, dice.randrange(1, EPOCHS))
    wait_until(lambda: epochs_done(out) >= epoch, process)
    if moment == "writing":
        wait_until(lambda: any(out.glob(".*.tmp.ckpt")), process, pause=0.0005)
    else:
        time.sleep(dice.uniform(0, 0.8 * seconds[moment]))
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(MOMENTS)))
def test_a_killed_run_ends_as_if_it_had_not_been(
    number: int,
    forked: Forks,
    straight: tuple[Path, dict[str, float]],
    tiny_root: Path,
    tmp_path: Path,
    ledger: Ledger,
) -> None:
    whole, seconds = straight
    out = tmp_path / "run"
    killed = kill(start(words(tiny_root, out)), out, MOMENTS[number], seconds, random.Random(number))
    code, log = forked.run(words(tiny_root, out, "--resume"))
    changed = differences(whole, out) if code == 0 else [log]
    if killed:
        ledger.note(KILL, survived=not changed and not leftovers(out))
    assert changed == []
    assert leftovers(out) == []


WRITES = [
    (LAST, 3, "half"),
    (METRICS, 4, "append"),
    *(
        (file, nth, stage)
        for file, nth in ((CONFIG, 1), (METRICS, 1), (RESULT, 1))
        for stage in ("half", "after")
    ),
    *((file, nth, "whole") for file, nth in ((LAST, 1), (LAST, 4), (BEST, 1), (BEST, 3), (BEST, 7))),
    *((file, nth, "after") for file, nth in ((LAST, 2), (LAST, 6), (BEST, 7))),
]
SHORT = 6


@pytest.fixture(scope="module")
def short(forked: Forks, tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of `SHORT` epochs."""
    out = tmp_path_factory.mktemp("short") / "run"
    assert forked.run(words(tiny_root, out, epochs=SHORT))[0] == 0
    return out


@pytest.mark.parametrize(
    ("file", "nth", "stage"),
    [pytest.param(*write, marks=[pytest.mark.slow] if n >= 2 else []) for n, write in enumerate(WRITES)],
)
def test_a_run_killed_inside_a_write(
    file: str,
    nth: int,
    stage: str,
    forked: Forks,
    short: Path,
    tiny_root: Path,
    tmp_path: Path,
    ledger: Ledger,
) -> None:
    out = tmp_path / "run"
    code, log = forked.run(words(tiny_root, out, epochs=SHORT), file=file, nth=nth, stage=stage)
    assert code == -signal.SIGKILL, log
    if stage in ("half", "whole"):
        assert any(path.name.startswith(f".{Path(file).stem}-") for path in out.iterdir()), "a file is left"
    code, log = forked.run(words(tiny_root, out, "--resume", epochs=SHORT))
    changed = differences(short, out) if code == 0 else [log]
    ledger.note(WRITE, survived=not changed and not leftovers(out))
    assert changed == []
    assert leftovers(out) == []


def made(root: Path) -> dict[str, str]:
    """SHA-256 of all files below a data root."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def making(root: Path, count: int) -> list[str]:
    sizes = [f"--{split}={count}" for split in ("train", "val", "test")]
    return ["data", "make", "nbody", "--data", str(root), "--threads", "1", *sizes]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data of 10 systems, and of 20: the first 10 and more."""
    small, large = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("large")
    assert main(making(small, 10)) == 0
    assert main(making(large, 20)) == 0
    return small, large


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["half", "whole", "after"])
@pytest.mark.parametrize("file", ["train.npz", "val.json"])
def test_making_data_killed_inside_a_write(
    file: str, stage: str, forked: Forks, roots: tuple[Path, Path], tmp_path: Path, ledger: Ledger
) -> None:
    """A data set that is extended: the old and the new file are never confused."""
    killed = tmp_path / "data"
    shutil.copytree(roots[0], killed)
    assert forked.run(making(killed, 20), file=file, stage=stage)[0] == -signal.SIGKILL
    code, log = forked.run(making(killed, 20))
    ledger.note(MAKE, survived=code == 0 and made(killed) == made(roots[1]))
    assert code == 0, log
    assert made(killed) == made(roots[1])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_making_data_killed_at_a_random_moment(
    number: int, forked: Forks, roots: tuple[Path, Path], tmp_path: Path, ledger: Ledger
) -> None:
    folder = tmp_path / "nbody" / "charged-component-seed0"
    process = start(making(tmp_path, 20))
    wait_until(lambda: (folder / f"{('train', 'val')[number % 2]}.json").exists(), process)
    time.sleep(random.Random(number).uniform(0, 0.5))
    process.kill()
    process.communicate()
    code, log = forked.run(making(tmp_path, 20))
    ledger.note(MAKE, survived=code == 0 and made(tmp_path) == made(roots[1]))
    assert code == 0, log
    assert made(tmp_path) == made(roots[1])
