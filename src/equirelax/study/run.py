"""Running a study: processes that share the cores, broken runs tried again, those that fail for good listed."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from equirelax.errors import ConfigError
from equirelax.study.spec import Study
from equirelax.study.state import State, write_journal
from equirelax.training.folder import RESULT
from equirelax.training.jobs import LOG, Interrupts, Job
from equirelax.training.lock import locked
from equirelax.training.machine import Machine, cores

LOCK = "study.lock"
BAD_INPUT = 2
"""The exit code of a run that cannot work: missing data, impossible settings, a diverged loss. It would fail again."""
POLL = 0.2
Show = Callable[[Sequence[State]], None]


@dataclass(eq=False)
class Runner:
    """Runs what is not finished, at most `jobs` at a time, each with its share of the cores.

    Attributes:
        study: For its attempts and its journal. out: Its folder. states: Of all runs; changed as they go on.
        data: Data root as a run's --data takes it; None: as usual. jobs: Runs at the same time. show: Called about five
            times a second with the states.
    """

    study: Study
    out: Path
    states: Sequence[State]
    data: str | None
    jobs: int
    show: Show
    interrupts: Interrupts = field(default_factory=Interrupts)
    _running: dict[Job, tuple[State, subprocess.Popen[bytes], int]] = field(default_factory=dict)

    def run(self) -> int:
        """Run them.

        Returns:
            0 when every run is finished, 1 when some failed, 130 when interrupted (the same command goes on).

        Raises:
            FolderInUseError: another process runs a study in this folder.
        """
        with locked(self.out, LOCK):
            before = {n: signal.signal(n, self.interrupts) for n in (signal.SIGINT, signal.SIGTERM)}
            try:
                self._work([state for state in self.states if state.status == "waiting"])
            finally:
                for _, process, _ in self._running.values():  # only after an error of our own
                    process.send_signal(signal.SIGINT)
                for number, handler in before.items():
                    signal.signal(number, handler)
        if self.interrupts.count:
            return 130
        return 1 if any(state.status == "failed" for state in self.states) else 0

    def _work(self, waiting: list[State]) -> None:
        machine = Machine(threads=threads_each(self.jobs), progress=False)
        write_journal(self.out, self.study, self.states)
        while self._running or (waiting and not self.interrupts.count):
            while waiting and len(self._running) < self.jobs and not self.interrupts.count:
                self._start(waiting.pop(0), machine)
            self.show(self.states)
            time.sleep(POLL)
            for job, (state, process, position) in list(self._running.items()):
                if process.poll() is None:
                    continue
                del self._running[job], self.interrupts.running[job]
                self._ended(state, process.returncode, position)
                if state.status == "waiting" and not self.interrupts.count:
                    waiting.append(state)
                write_journal(self.out, self.study, self.states)
        self.show(self.states)

    def _start(self, state: State, machine: Machine) -> None:
        """Start a process; one that cannot even be started has failed."""
        job = Job(state.trial.config, state.folder, machine)
        state.attempts += 1
        try:
            state.folder.mkdir(parents=True, exist_ok=True)
            log = state.folder / LOG
            position = log.stat().st_size if log.exists() else 0
            process = job.start(self.data)
        except OSError as error:
            state.status, state.reason = "failed", f"it could not be started: {error}"
            return
        state.status = "running"
        self._running[job] = (state, process, position)
        self.interrupts.running[job] = process

    def _ended(self, state: State, code: int, position: int) -> None:
        """Note how a process ended: finished, to be tried again, failed for good, or asked to stop."""
        if code == 0 and (state.folder / RESULT).exists():
            state.status, state.reason = "finished", ""
            return
        if self.interrupts.count:
            state.status = "waiting"
            return
        state.reason = reason(code, state.folder / LOG, position)
        again = code != BAD_INPUT and state.attempts < self.study.attempts
        state.status = "waiting" if again else "failed"


def fair_jobs(study: Study, wanted: int | None, left: int) -> int:
    """Runs at the same time: as asked for, or as the study says, or one for every core; never more than are left.

    Raises:
        ConfigError: less than one.
    """
    if wanted is not None and wanted < 1:
        raise ConfigError(f"--jobs is {wanted}; at least one run at a time is needed.")
    return max(1, min(wanted or study.jobs or cores(), left))


def threads_each(jobs: int) -> int:
    """Each run's share of the cores."""
    return max(1, cores() // jobs)


def reason(code: int, log: Path, position: int) -> str:
    """Why a run ended, in a line: the last thing that it said since `position`, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        memory = ", as for want of memory" if -code == signal.SIGKILL else ""
        return f"ended by {name}{memory}"
    try:
        with log.open("rb") as file:
            file.seek(position)
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"exit code {code}; {log} cannot be read: {error.strerror}"
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("equirelax: error: ") if said else f"exit code {code}, and nothing in {log}"
