"""Run the fast tests, a share of the slow ones, or all: on all cores, then those that want the machine for themselves.

    python tests/run_tiers.py fast [--budget 500] [--times FOLDER] [--record FILE]
    python tests/run_tiers.py share K/N
    python tests/run_tiers.py all

`fast` is what is not marked slow; `share` is every N-th of the slow tests, from the K-th on; `all` is both, whole. Tests that
start several processes or take times are marked serial: they run one after the other when the others are done. Published networks
(tests/networks) are in `all` alone: their packages take long to import, and `make test-networks` runs them.

At the end stand the CPU seconds of all processes, and what they would be on a reference core: these seconds, times how many
times as fast a core here is. Two things are timed on one thread, in CPU time, the median of some, before and after: neighbours
that slow the tests down slow them down too. One is a product of two 1024 x 1024 float32 matrices, which the reference computes
at 55 GFLOP/s, the other a training step of a linear layer of 8 x 8 weights, of which it makes 14,000 a second. The lower ratio
counts: a core that multiplies large matrices twice as fast as another need not be faster in Python, where the tests spend most
of their time. `--budget` fails where the scaled seconds are more.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = [ROOT / "tests", ROOT / "lab" / "tests"]
NETWORKS = ROOT / "tests" / "networks"
REFERENCE = 55.0, 14_000.0
"""GFLOP/s, and small training steps a second, of the core on which a budget counts."""
MOST = "8"
"""Workers: each imports and collects everything, which costs as much CPU time as hundreds of tests."""
NOTHING_TO_RUN = 5
"""pytest's exit code where no test was selected."""
TIERS = {"fast": "not slow and ", "share": "slow and ", "all": ""}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tier", choices=TIERS)
    parser.add_argument("share", nargs="?", metavar="K/N", help="which of the slow tests `share` runs")
    parser.add_argument(
        "--workers", default="logical", help="processes side by side; as many as cores if left out, at most 8"
    )
    parser.add_argument(
        "--budget", type=float, help="CPU seconds, on the reference core, above which this fails"
    )
    parser.add_argument("--times", type=Path, help="folder that receives the CPU seconds of every test")
    parser.add_argument(
        "--record", type=Path, help="text file that receives the line of seconds, and the commit"
    )
    chosen = parser.parse_args()
    if (chosen.tier == "share") != (chosen.share is not None):
        parser.error("`share` wants K/N, as in `share 3/8`, and nothing else takes it")

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Else each of the many processes would compile all of the sources, and pytest all of the tests, anew.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    speed = speed_of_a_core(environment)
    began, before = time.monotonic(), children_seconds()
    codes = []
    for name, mark, words in (
        (
            "together",
            "not serial",
            ["-n", chosen.workers, "--maxprocesses", MOST, "--dist", "worksteal", *map(str, TESTS)],
        ),
        ("serial", "serial", ["-n", "0", *files_with_serial_tests()]),
    ):
        command = [sys.executable, "-m", "pytest", "-q", "-m", TIERS[chosen.tier] + mark, *words]
        if chosen.tier != "all":
            command += ["--ignore", str(NETWORKS)]
        if chosen.share:
            command += ["--slow-share", chosen.share]
        if chosen.times:
            chosen.times.mkdir(parents=True, exist_ok=True)
            command += ["--cpu-times", str(chosen.times / f"{name}.json")]
        codes.append(subprocess.run(command, env=environment, cwd=ROOT).returncode)
        if codes[-1] == 2:  # interrupted
            return 2
    seconds = children_seconds() - before
    speed = (speed + speed_of_a_core(environment)) / 2  # neighbours slow down both
    scaled = seconds * speed
    line = (
        f"{seconds:.0f} s of CPU in {time.monotonic() - began:.0f} s, on cores {speed:.2f} times as fast as the reference: "
        f"{scaled:.0f} s of CPU on the reference"
    )
    print(line)
    if chosen.record:
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
        chosen.record.write_text(
            f"make test: {line}, {os.cpu_count()} cores; commit {commit}\n", encoding="utf-8"
        )
    if chosen.budget is not None and scaled > chosen.budget:
        print(
            f"This is more than the budget of {chosen.budget:.0f} s. `make test-times` names the dearest tests."
        )
        codes.append(1)
    return max(code for code in codes if code != NOTHING_TO_RUN) if any(codes) else 0


def files_with_serial_tests() -> list[str]:
    """Only these are collected for the serial tests: collecting all of them takes as long as running many."""
    paths = sorted(path for folder in TESTS for path in folder.rglob("test_*.py"))
    return [str(path) for path in paths if "mark.serial" in path.read_text("utf-8")]


def speed_of_a_core(environment: dict[str, str]) -> float:
    """How many times as fast as the reference one is, as busy as it is."""
    found = subprocess.check_output([sys.executable, "-c", SPEED], env=environment).split()
    return min(float(own) / reference for own, reference in zip(found, REFERENCE, strict=True))


def children_seconds() -> float:
    """CPU seconds of all processes that were started from here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


SPEED = """
import time, torch
torch.set_num_threads(1)
a, b = torch.randn(2, 1024, 1024)
layer, x = torch.nn.Linear(8, 8), torch.randn(4, 8)

def median(call):
    seconds = []
    for _ in range(30):
        began = time.thread_time()
        call()
        seconds.append(time.thread_time() - began)
    return sorted(seconds)[15]

def steps():
    for _ in range(100):
        layer(x).square().sum().backward()

print(2 * 1024**3 / median(lambda: a @ b) / 1e9, 100 / median(steps))
"""

if __name__ == "__main__":
    sys.exit(main())
