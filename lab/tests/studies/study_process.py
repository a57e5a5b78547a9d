"""`equirelax study run` as a process, for tests; it is always ended."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from equirelax_lab.training.folder import METRICS, read_table

PATIENCE = 600.0
"""Seconds to wait; a busy machine is slow."""


@contextmanager
def study_run(path: Path, out: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command, with its output in one pipe."""
    process = subprocess.Popen(
        [sys.executable, "-m", "equirelax_lab.cli", "study", "run", str(path), "--out", str(out), *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the command to end by itself; returns its exit code and output."""
    text = process.communicate(timeout=PATIENCE)[0]
    return process.returncode, text


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until `condition` holds while the command runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rows(run: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv without times; none where there is no file yet."""
    try:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in read_table(run / METRICS)]
    except OSError:
        return []


def processes_of(run: Path) -> list[int]:
    """The numbers of the living processes whose command line names a run's folder, in ascending order."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words:
            found.append(int(path.parent.name))
    return sorted(found)
