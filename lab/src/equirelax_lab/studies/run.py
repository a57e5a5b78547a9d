"""Running a study: processes that share the cores, broken runs tried again, those that fail for good listed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from equirelax.errors import ConfigError
from equirelax_lab.studies.engine import LOCK, Ending, Engine, Handle, LocalEngine
from equirelax_lab.studies.live import duration
from equirelax_lab.studies.spec import Study
from equirelax_lab.studies.state import State, write_journal
from equirelax_lab.training.folder import RESULT
from equirelax_lab.training.jobs import LOG, Interrupts, Job, Queue
from equirelax_lab.training.lock import holder, locked
from equirelax_lab.training.machine import Machine

BAD_INPUT = 2
"""The exit code of a run that cannot work: missing data, impossible settings, a diverged loss. It would fail again."""
POLL = 0.2
Show = Callable[[Sequence[State]], None]
LOCAL = LocalEngine()


@dataclass(eq=False)
class _Try:
    """One start of a run: where its log begins, when it began, how often it was asked to stop, whether it took too long."""

    state: State
    handle: Handle
    position: int
    since: float | None = None
    asked: int = 0
    overdue: bool = False


@dataclass(eq=False)
class Runner:
    """Runs what is not finished, at most `jobs` at a time, each with its share of the cores.

    Attributes:
        study: For its attempts and its journal. out: Its folder. states: Of all runs; changed as they go on.
        data: Data root as a run's --data takes it; None: as usual. jobs: Runs at the same time. show: Called about five
            times a second with the states. engine: Where they execute.
    """

    study: Study
    out: Path
    states: Sequence[State]
    data: str | None
    jobs: int
    show: Show
    engine: Engine = LOCAL
    interrupts: Interrupts = field(default_factory=Interrupts)
    _running: list[_Try] = field(default_factory=list)

    def run(self) -> int:
        """Run them.

        Returns:
            0 when every run is finished, 1 when some failed, 130 when interrupted (the same command goes on).

        Raises:
            FolderInUseError: another process runs a study in this folder.
            ConfigError: machines of the engine cannot work in this folder.
        """
        with locked(self.out, LOCK):
            before = {n: signal.signal(n, self.interrupts) for n in (signal.SIGINT, signal.SIGTERM)}
            try:
                self.engine.prepare(self.out)
                self._work(Queue(state for state in self.states if state.status == "waiting"))
            finally:
                for each in self._running:  # only after an error of our own
                    each.handle.interrupt()
                for number, handler in before.items():
                    signal.signal(number, handler)
        if self.interrupts.count:
            return 130
        return 1 if any(state.status == "failed" for state in self.states) else 0

    def _work(self, waiting: Queue[State]) -> None:
        study = self.study
        threads = threads_each(self.jobs, study.devices, study.on_gpu, self.engine)
        machine = Machine(
            accelerator=study.accelerator, devices=study.devices, threads=threads, progress=False
        )
        write_journal(self.out, self.study, self.states)
        while self._running or (waiting and not self.interrupts.count):
            for state in [] if self.interrupts.count else waiting.take(self.jobs - len(self._running)):
                self._start(state, machine)
            self.show(self.states)
            time.sleep(POLL)
            for each in list(self._running):
                ending = self._watch(each)
                if ending is None:
                    continue
                self._running.remove(each)
                self._ended(each, ending)
                if each.state.status == "waiting" and not self.interrupts.count:
                    waiting.append(each.state)
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
            handle = self.engine.start(job, self.data)
        except OSError as error:
            state.status, state.reason = "failed", f"it could not be started: {error}"
            return
        self._running.append(_Try(state, handle, position))
        self._place(self._running[-1])

    def _place(self, each: _Try) -> None:
        """Note that a try has got a machine, and the clock of its timeout runs."""
        where = each.handle.where
        if where is not None and each.since is None:
            each.since, each.state.status, each.state.where = time.monotonic(), "running", where
            write_journal(self.out, self.study, self.states)

    def _watch(self, each: _Try) -> Ending | None:
        """How a try ended; while it runs, pass on what is asked of it, and end it when its time is over."""
        ending = each.handle.poll()
        self._place(each)
        if ending is not None:
            return ending
        for _ in range(self.interrupts.count - each.asked):
            each.handle.interrupt()
        each.asked = self.interrupts.count
        limit = self.study.timeout
        if limit is not None and each.since is not None and time.monotonic() - each.since > limit:
            each.overdue = True
            each.handle.kill()
        return None

    def _ended(self, each: _Try, ending: Ending) -> None:
        """Note how a try ended: finished, to be tried again, failed for good, or asked to stop."""
        state, code = each.state, ending.code
        # A result is the last thing that a run writes; what goes wrong when its processes then part does no harm.
        if (state.folder / RESULT).exists():
            state.status, state.reason = "finished", ""
            return
        if self.interrupts.count:
            state.status = "waiting"
            return
        if code == BAD_INPUT and holder(state.folder) is not None:
            # another process was quicker, between our look and our start
            state.status, state.attempts = "waiting", state.attempts - 1
            return
        state.reason = ending.why or reason(code, state.folder / LOG, each.position)
        if each.overdue and self.study.timeout is not None:
            state.reason = f"not finished after {duration(self.study.timeout)}, the study's timeout"
        again = code != BAD_INPUT and state.attempts < self.study.attempts
        state.status = "waiting" if again else "failed"


def fair_jobs(study: Study, wanted: int | None, left: int, engine: Engine = LOCAL) -> int:
    """Runs at the same time: as asked for, or as the study says, or as many as have a core for each of their processes;
    never more than are left.

    Raises:
        ConfigError: less than one, or there is no machine, or GPU, for a run.
    """
    if wanted is not None and wanted < 1:
        raise ConfigError(f"--jobs is {wanted}; at least one run at a time is needed.")
    fit = engine.slots(study.devices, 1, study.on_gpu)
    return max(1, min(wanted or study.jobs or fit, left))


def threads_each(jobs: int, devices: int = 1, gpu: bool = False, engine: Engine = LOCAL) -> int:
    """Each process's share of the cores, when `jobs` runs of `devices` processes go on at the same time."""
    threads = 1
    while engine.slots(devices, threads + 1, gpu) >= jobs:
        threads += 1
    return threads


def reason(code: int | None, log: Path, position: int) -> str:
    """Why a run ended, in a line: the last thing that it said since `position`, or the signal that ended it."""
    if code is None:
        return "nobody knows how it ended"
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
