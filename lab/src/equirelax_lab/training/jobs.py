"""Many runs as processes of their own, a few at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Generic, Protocol, TypeVar

from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training.folder import CONFIG, METRICS, RESULT, read_table
from equirelax_lab.training.lock import holder
from equirelax_lab.training.machine import Machine

LOG = "log.txt"
SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True, eq=False)
class Job:
    """One run to be made: settings, folder, where it executes, and variables that its environment has besides ours."""

    config: RunConfig
    folder: Path
    machine: Machine
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Method, variant and seed, as the folder names them."""
        return self.folder.name

    @property
    def done(self) -> bool:
        """Whether the run has a result already."""
        return (self.folder / RESULT).exists()

    def start(self, data: str | None) -> subprocess.Popen[bytes]:
        """Start the process; its output goes to log.txt. It ignores the terminal's Ctrl-C: the parent passes
        it on.
        """
        settings = self.folder / CONFIG
        if not settings.exists():
            self.config.write(settings)
        words = [
            sys.executable,
            "-m",
            "equirelax_lab.cli",
            "train",
            self.config.benchmark,
            "--config",
            str(settings),
        ]
        words += ["--out", str(self.folder), "--resume", *(["--data", data] if data else [])]
        for name, value in asdict(self.machine).items():
            words.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
        environment = {**os.environ, **self.environment}
        with (self.folder / LOG).open("ab") as log:
            return subprocess.Popen(
                words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )


class Interrupts:
    """Counts Ctrl-C and SIGTERM, and passes each on to the running processes.

    Installed even where they are ignored, as by a shell for its background jobs: `kill -INT` must reach the
        runs.
    """

    def __init__(self) -> None:
        self.count = 0
        self.running: dict[Job, subprocess.Popen[bytes]] = {}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.count += 1
        if self.count == 1:
            print(
                "\nStopping: runs end after their present epoch (again: at once).",
                file=sys.stderr,
                flush=True,
            )
        for process in self.running.values():
            self._pass_on(process)

    def watch(self, job: Job, process: subprocess.Popen[bytes]) -> None:
        """Pass signals on to `process` from now on, and those that came while it was started."""
        self.running[job] = process
        if self.count:
            self._pass_on(process)

    @staticmethod
    def _pass_on(process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)


class _Placed(Protocol):
    """Whatever has a run's folder."""

    @property
    def folder(self) -> Path: ...


T = TypeVar("T", bound=_Placed)


class Queue(Generic[T]):
    """Runs to be started. Those that a process which outlived an earlier, killed command still works on wait for its
    end: they would be refused, and they use cores.

    Args:
        items: Jobs, or whatever else has a run's `folder`, in the order in which they are to be started.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self.items = list(items)
        self._told: set[Path] = set()

    def __len__(self) -> int:
        return len(self.items)

    def append(self, item: T) -> None:
        """Put `item` at the end."""
        self.items.append(item)

    def take(self, room: int) -> list[T]:
        """Take out what may be started now, where `room` runs more are wanted at the same time."""
        if room < 1:
            return []
        owners = {item.folder: owner for item in self.items if (owner := holder(item.folder)) is not None}
        for folder, owner in owners.items():
            if folder not in self._told:
                self._told.add(folder)
                print(
                    f"{folder.name}: {owner} works on it; waiting for its end.", file=sys.stderr, flush=True
                )
        free = [item for item in self.items if item.folder not in owners]
        taken = free[: max(0, room - len(owners))]
        self.items = [item for item in self.items if item not in taken]
        return taken


def run_jobs(jobs: Sequence[Job], data: str | None, parallel: int) -> int:
    """Run what is not done yet, at most `parallel` at a time.

    Returns:
        0 when every run has a result, 1 when one failed, 130 when interrupted (the runs stay resumable).
    """
    waiting = [job for job in jobs if not job.done]
    if len(waiting) < len(jobs):
        print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished already.", flush=True)
    interrupts = Interrupts()
    queue = Queue(waiting)
    before = {number: signal.signal(number, interrupts) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        failed = _work(jobs, queue, interrupts, data, parallel)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupts.count:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return 130
    return 1 if failed else 0


def _work(
    jobs: Sequence[Job], waiting: Queue[Job], interrupts: Interrupts, data: str | None, parallel: int
) -> list[Job]:
    """Start, watch and report; returns the runs that failed."""
    running, failed, line = interrupts.running, [], time.monotonic()
    while running or (waiting and not interrupts.count):
        for job in [] if interrupts.count else waiting.take(parallel - len(running)):
            interrupts.watch(job, job.start(data))
        time.sleep(0.2)
        for job, process in list(running.items()):
            if process.poll() is not None:
                del running[job]
                if not _succeeded(job, process.returncode, interrupts.count > 0):
                    failed.append(job)
        if time.monotonic() - line > SECONDS_BETWEEN_LINES:
            line = time.monotonic()
            print(_state(jobs, list(running)), flush=True)
    return failed


def _succeeded(job: Job, code: int, stopping: bool) -> bool:
    """Report how a run ended; one that was asked to stop has not failed."""
    if code == 0 and job.done:
        print(f"{job.label}: finished.", flush=True)
    elif not stopping:
        log = job.folder / LOG
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        print(f"{job.label}: failed with exit code {code}; the end of {log}:", file=sys.stderr)
        print("\n".join(f"    {text}" for text in tail), file=sys.stderr, flush=True)
        return False
    return True


def _state(jobs: Sequence[Job], running: Sequence[Job]) -> str:
    parts = [f"{sum(job.done for job in jobs)}/{len(jobs)} runs finished"]
    for job in running:
        table = job.folder / METRICS
        with contextlib.suppress(OSError, KeyError, IndexError, ValueError):
            epoch = int(read_table(table)[-1]["epoch"]) + 1
            parts.append(f"{job.label}: epoch {epoch}/{job.config.training.epochs}")
    return "; ".join(parts)
