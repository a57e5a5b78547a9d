"""Runs in processes of their own, and the comparison of an interrupted run with an undisturbed one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from equirelax_lab.training.folder import BEST, LAST, METRICS, RESULT, read_table
from torch.utils._pytree import tree_flatten

from equirelax.relaxation import read

EPOCHS = 24
PATIENCE = 600
"""Seconds after which a test gives up; machines may be busy."""
CLI = (sys.executable, "-m", "equirelax_lab.cli")
FLAGS = [
    *("--model", "segnn", "--method", "ace", "--batch_size", "12", "--checkpoint_every", "1"),
    *("--validate_every", "1", "--dataset.train", "48", "--dataset.val", "24", "--dataset.test", "24"),
    *("--network.layers", "1", "--network.hidden", "8", "--progress", "false"),
]
STUDY = """
title: Three
benchmark: nbody
methods: [ace]
seeds: 3
settings:
  epochs: 6
  batch_size: 1
  checkpoint_every: 1
  dataset: {train: 48, val: 24, test: 24}
  network: {layers: 1, hidden: 8}
"""
"""A study of three runs of 6 epochs."""
CLOCKS = {"seconds", "milliseconds", "commit"}
"""Keys that differ between two equal runs. Commits may too, if the repository changes meanwhile."""


def words(root: Path, out: Path, *more: str, epochs: int = EPOCHS) -> list[str]:
    """The words after `equirelax` of a small training run with a checkpoint and a row for every epoch."""
    named = ["--data", str(root), "--out", str(out), "--epochs", str(epochs)]
    return ["train", "nbody", *FLAGS, *named, *more]


_started: list[subprocess.Popen[str]] = []


def start(arguments: Iterable[str], **options: Any) -> subprocess.Popen[str]:
    """Start `equirelax ARGUMENTS` in a process of its own whose standard error can be read."""
    given = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, **options}
    given["preexec_fn"] = _heed_interrupts
    _started.append(subprocess.Popen([*CLI, *arguments], **given))
    return _started[-1]


def _heed_interrupts() -> None:
    """Restore Ctrl-C in the new process: background jobs of a shell, and their children, ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def end_started() -> None:
    """End the processes of `start` that still run, for instance after a failed test."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str], pause: float = 0.01) -> bool:
    """Wait until `process` has made something happen; False if it ended before."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened in {PATIENCE} s")
        time.sleep(pause)
    return True


def epochs_done(folder: Path) -> int:
    """The present number of rows in metrics.csv."""
    try:
        return max(0, (folder / METRICS).read_bytes().count(b"\n") - 1)
    except OSError:
        return 0


def leftovers(folder: Path) -> list[str]:
    """Files that no run leaves behind: temporary ones and locks."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.name.startswith(".") or path.suffix in (".lock", ".part")
    ]


def differences(straight: Path, resumed: Path) -> list[str]:
    """List the files of two finished runs that differ: weights and all other state, curves, numbers."""
    found = []
    if plain(json.loads((straight / RESULT).read_text())) != plain(
        json.loads((resumed / RESULT).read_text())
    ):
        found.append(RESULT)
    rows = [[plain(row) for row in read_table(folder / METRICS)] for folder in (straight, resumed)]
    if rows[0] != rows[1]:
        found.append(METRICS)
    for name in (LAST, BEST):
        (ours, form), (theirs, other) = (
            tree_flatten(plain(read(folder / name))) for folder in (straight, resumed)
        )
        if form != other or not all(map(equal, ours, theirs)):
            found.append(name)
    return found


def plain(content: Any) -> Any:
    """`content` without clocks."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items() if key not in CLOCKS}
    return content


def equal(a: Any, b: Any) -> bool:
    """Whether two leaves are the same, tensors bit for bit."""
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else bool(a == b)
