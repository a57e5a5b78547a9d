"""A script: runs `equirelax` command lines in processes of their own, some killed inside a write, some in want of room.

Standard input has a line of JSON for each: an `Order`. Answers with a line: the process's exit status, negative for a
signal. The processes are forks of this one, which has imported everything already.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@dataclass(frozen=True)
class Order:
    """One command line.

    Attributes:
        words: After `equirelax`. log: File that receives what it prints.
        stage: None; or it is killed in the `nth` write of a file named `file`: when the temporary file is "half" there,
            when it is "whole" but not renamed, "after" the renaming; "append": when half a row is appended to metrics.csv.
        limit: Bytes that no file may exceed; None: any size.
        bound: It may not write where the permissions of files forbid it, whoever runs it.
    """

    words: list[str]
    log: str = os.devnull
    file: str = ""
    nth: int = 1
    stage: str | None = None
    limit: int | None = None
    bound: bool = False


class Forks:
    """Forks a process for each order, one after the other."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log.txt"
        self._driver = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, words: list[str], **how: Any) -> tuple[int, str]:
        """Exit status of `equirelax WORDS`, and what it printed. `how`: see `Order`."""
        self._log.write_text("")
        order = Order(words, str(self._log), **how)
        print(json.dumps(asdict(order)), file=self._driver.stdin, flush=True)
        assert self._driver.stdout is not None
        return int(self._driver.stdout.readline()), self._log.read_text()

    def close(self) -> None:
        """End the script."""
        self._driver.communicate()


@contextmanager
def forks() -> Iterator[Forks]:
    """Start and end the process that forks."""
    with TemporaryDirectory() as folder:
        found = Forks(Path(folder))
        try:
            yield found
        finally:
            found.close()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_in_write(file: str, nth: int, stage: str) -> None:
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
        _die()
        return self

    Path.replace = replace  # type: ignore[method-assign]


def _die_in_append(nth: int) -> None:
    """Kill the process when it has half written the row of epoch `nth` of metrics.csv."""
    from equirelax_lab.training.loggers import EpochTable

    log = EpochTable.log

    def half(self: EpochTable, epoch: int, row: Any) -> None:
        before = self.path.stat().st_size if epoch == nth else 0
        log(self, epoch, row)
        if epoch == nth:
            os.truncate(self.path, (before + self.path.stat().st_size) // 2)
            _die()

    EpochTable.log = half  # type: ignore[method-assign]


def _give_up_privileges() -> None:
    """Drop all capabilities, among them the superuser's to write anywhere; see capset(2)."""
    version, this_process = 0x20080522, 0
    header, nothing = struct.pack("Ii", version, this_process), bytes(24)
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "the capabilities cannot be dropped")


def _obey(order: Order) -> int:
    """Prepare the fault in the forked process, then run the command line."""
    from equirelax_lab.cli.main import main

    log = os.open(order.log, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order.stage == "append":
        _die_in_append(order.nth)
    elif order.stage is not None:
        _die_in_write(order.file, order.nth, order.stage)
    if order.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order.limit, order.limit))
    if order.bound:
        _give_up_privileges()
    return main(order.words)


def _serve() -> None:
    for name in ("cli.compare", "cli.data", "cli.study", "cli.train", "training.run"):
        importlib.import_module(f"equirelax_lab.{name}")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 70  # of an error that is none of equirelax's
            try:
                code = _obey(Order(**json.loads(line)))
            except BaseException:
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
