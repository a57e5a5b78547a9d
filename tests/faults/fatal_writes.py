"""A script: runs `equirelax` command lines in processes of their own, each killed inside one of its writes.

Standard input has a line of JSON for each: {"words": [...], "file": name, "nth": which write of a file of this name,
"stage": "half" (the temporary file is half there), "whole" (it is, but not renamed), "after" (it is renamed) or
"append" (half a row is appended to metrics.csv), null (no kill)}. Answers with a line: the process's exit status, negative
for a signal. The processes are forks of this one, which has imported everything already.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from equirelax.cli.main import main
from equirelax.training.loggers import EpochTable
from equirelax.training.run import train

__all__ = ["train"]  # imported for its imports


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_write(file: str, nth: int, stage: str) -> None:
    """Make the `nth` renaming to a file of that name fatal."""
    rename = Path.replace
    count = 0

    def replace(self: Path, target: Any) -> Path:
        nonlocal count
        count += Path(target).name == file
        if Path(target).name != file or count != nth:
            return rename(self, target)
        if stage == "half":
            os.truncate(self, self.stat().st_size // 2)
        elif stage == "after":
            rename(self, target)
        die()
        return self

    Path.replace = replace  # type: ignore[method-assign]


def die_in_append(nth: int) -> None:
    """Make the `nth` row of metrics.csv fatal, half-written."""
    log = EpochTable.log_metrics

    def half(self: EpochTable, metrics: Any, step: int | None = None) -> None:
        if step != nth:
            log(self, metrics, step)
            return
        before = self.path.stat().st_size
        log(self, metrics, step)
        os.truncate(self.path, (before + self.path.stat().st_size) // 2)
        die()

    EpochTable.log_metrics = half  # type: ignore[method-assign]


for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        if order["stage"] == "append":
            die_in_append(order["nth"])
        elif order["stage"] is not None:
            die_in_write(order["file"], order["nth"], order["stage"])
        code = 70
        try:
            with contextlib.redirect_stdout(sys.stderr):
                code = main(order["words"])
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
