"""Make the mistakes of `mistakes.py` one by one, and fail where the fast tests do not notice one.

    python tests/mutants/run.py [K/N] [--jobs 2] [--only TEXT]

K/N: every N-th mutant, from the K-th on. A mutant is caught when one of its tests fails, which passes on the sources as they are.
Each runs in a fork of this process, which has imported what takes long, on a copy of the sources.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import e3nn.o3  # noqa: F401
import hypothesis  # noqa: F401
import pytest
import torch

TESTS = Path(__file__).resolve().parent.parent
SOURCES = TESTS.parent / "src" / "equirelax"
LAB = TESTS.parent / "lab" / "src"
sys.path.insert(0, str(TESTS))

from mistakes import MUTANTS, Mutant  # noqa: E402
from slow_share import share  # noqa: E402


class FirstFailure:
    """A plugin of pytest: writes the name of the first test that fails to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.file.exists():
            self.file.write_text(report.nodeid, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "share", nargs="?", default="0/1", metavar="K/N", help="which of the mutants; all if left out"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at the same time")
    parser.add_argument("--only", default="", help="mutants whose name holds this text")
    chosen = parser.parse_args()
    names = share([mutant.name for mutant in MUTANTS], chosen.share)
    waiting = [mutant for mutant in MUTANTS if mutant.name in names and chosen.only in mutant.name]
    if rotten := [m for m in waiting if (SOURCES / m.file).read_text("utf-8").count(m.old) != 1]:
        raise SystemExit(
            "\n".join(f"{m.name}: its text is not in {m.file} once; bring it up to date" for m in rotten)
        )
    survived, sound, broken = 0, set[str](), set[str]()
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        running: dict[int, tuple[Mutant, Path, float]] = {}
        while waiting or running:
            while waiting and len(running) < chosen.jobs:
                mutant = waiting.pop(0)
                folder = mutated(mutant, temporary)
                words = [*mutant.tests.split(), *(f"--deselect={name}" for name in sorted(broken))]
                running[started(folder, folder, words)] = mutant, folder, time.monotonic()
            number, status = os.wait()
            mutant, folder, began = running.pop(number)
            code, killer = os.waitstatus_to_exitcode(status), failed(folder)
            if killer is not None and killer not in sound:
                if not passes(killer, temporary):
                    broken.add(killer)
                    print(f"FAILS without any mutant too: {killer}", flush=True)
                    waiting.append(mutant)
                    continue
                sound.add(killer)
            said = f"caught    {mutant.name}: {killer}"
            if killer is None:
                survived += 1
                said = f"SURVIVED  {mutant.name} ({mutant.file}; {mutant.tests}), pytest's exit code {code}"
                if code != pytest.ExitCode.OK:
                    said += "\n" + (folder / "log").read_text("utf-8")[-2000:]
            print(f"{said}  [{time.monotonic() - began:.0f} s]", flush=True)
            shutil.rmtree(folder)
    print(
        "Every mutant was caught."
        if not survived
        else f"{survived} survived: write the tests that notice them."
    )
    return 1 if survived or broken else 0


def passes(test: str, temporary: str) -> bool:
    """Whether a test passes on the sources as they are."""
    folder = Path(tempfile.mkdtemp(dir=temporary))
    os.waitpid(started(folder, SOURCES.parent, [test]), 0)
    return failed(folder) is None


def failed(folder: Path) -> str | None:
    """The first test that failed in the run of which `folder` is."""
    file = folder / "failed"
    return file.read_text("utf-8") if file.exists() else None


def mutated(mutant: Mutant, temporary: str) -> Path:
    """A copy of the sources with the mutant in it, ready to be imported from."""
    folder = Path(tempfile.mkdtemp(dir=temporary))
    shutil.copytree(SOURCES, folder / "equirelax")
    path = folder / "equirelax" / mutant.file
    path.write_text(path.read_text("utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
    return folder


def started(folder: Path, sources: Path, tests: list[str]) -> int:
    """A process that runs tests on sources until the first failure: names as pytest writes them, or pytest's own words."""
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(TESTS.parent)
        sys.path[:0] = [str(sources), str(LAB)]
        os.environ["PYTHONPATH"] = os.pathsep.join([str(sources), str(LAB)])
        words = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not serial", *tests]
        code = int(pytest.main(words, plugins=[FirstFailure(folder / "failed")]))
    finally:
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
