"""The scheduler of all runs: `compare`, `study` and `search` start, watch, retry, resume and end their runs through it."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from equirelax.errors import ConfigError, StorageError
from equirelax_lab.studies.machines import LOCK, Ending, Handle, Job, LocalMachine, Machines
from equirelax_lab.studies.stacks import NOT_STACKABLE, Kind, kind_of, stacks
from equirelax_lab.studies.study import Study
from equirelax_lab.studies.trials import Recorded, Status, Trial, write_journal
from equirelax_lab.training.folder import LOG, RESULT
from equirelax_lab.training.lock import holder, locked
from equirelax_lab.training.progress import duration

BAD_INPUT = 2
"""Exit code of a run that cannot work: missing data, impossible settings, a diverged loss. It would fail again."""
POLL = 0.2
"""Seconds between two looks at the runs."""
TAIL = 5
"""Lines that are shown of a failed run's log."""
LOCAL = LocalMachine()


@dataclass(eq=False)
class Source:
    """The source of a study's trials; this one has all of them from the beginning.

    Attributes:
        trials: All trials so far. Those that are waiting when the scheduler begins are started first.
    """

    trials: list[Trial]

    def open(self, out: Path) -> None:
        """Read the state from the study's folder; called once, when this process holds the folder."""

    def next(self) -> Trial | None:
        """Add a further trial to `trials` and return it; None if there is none."""
        return None

    def watch(self, trial: Trial) -> bool:
        """Whether a running trial should be ended early; called whenever the scheduler checks it."""
        return False

    def ended(self, trial: Trial, broken: bool) -> bool:
        """Record that a trial has finished, failed for good or been pruned.

        Args:
            trial: The trial.
            broken: Whether it failed for a reason other than its settings.

        Returns:
            Whether to start no more trials.
        """
        return False


class Interrupts:
    """A signal handler that counts Ctrl-C and SIGTERM.

    It is installed even if these signals are ignored, as in a shell's background jobs: `kill -INT` must reach the runs.
    """

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Count a signal, and print what it does."""
        self.count += 1
        if self.count == 1:
            text = "\nStopping: runs end after their present epoch (again: at once)."
            print(text, file=sys.stderr, flush=True)


class Queue:
    """Trials to be started.

    A trial on which another process works waits until that process has ended. A run that outlived an earlier, killed
    command would refuse a second process in its folder, and it uses cores.

    Args:
        trials: The trials.
        stack: The largest number of trials that one process trains.

    Attributes:
        alone: Kinds of trials that cannot be stacked.
    """

    def __init__(self, trials: Sequence[Trial], stack: int = 1) -> None:
        self.trials, self.stack = list(trials), stack
        self.alone: set[Kind] = set()
        self._named: set[Path] = set()

    def __len__(self) -> int:
        return len(self.trials)

    def append(self, trial: Trial) -> None:
        """Add a trial at the end."""
        self.trials.append(trial)

    def take(self, room: int) -> list[list[Trial]]:
        """Remove and return the trials to start now, a list for each process, if there is room for `room` more
        processes.
        """
        if room < 1:
            return []
        owners = {t.folder: owner for t in self.trials if (owner := holder(t.folder)) is not None}
        for folder, owner in owners.items():
            if folder not in self._named:
                self._named.add(folder)
                text = f"{folder.name}: {owner} works on it; waiting for its end."
                print(text, file=sys.stderr, flush=True)
        free = [trial for trial in self.trials if trial.folder not in owners]
        others = {
            (owner.host, owner.pid) for owner in owners.values()
        }  # one process may hold the folders of a stack
        taken = stacks(free, self.stack, self.alone)[: max(0, room - len(others))]
        started = [trial for group in taken for trial in group]
        self.trials = [trial for trial in self.trials if trial not in started]
        return taken


@dataclass(eq=False)
class _Try:
    """One start of a run, or of a stack of runs.

    Attributes:
        trials: The runs of the process.
        handle: The started process.
        positions: Where its part of each run's log begins.
        since: The time when it got a machine.
        asked: How often it was asked to end.
        overdue: Whether it was killed because it took too long.
    """

    trials: list[Trial]
    handle: Handle
    positions: list[int]
    since: float | None = None
    asked: int = 0
    overdue: bool = False


@dataclass(eq=False)
class Scheduler:
    """Runs the trials of a study, at most `jobs` at a time.

    Attributes:
        study: The study, for its attempts, timeout, machine and journal.
        out: The study's folder.
        source: Where the trials come from.
        data: The data root as a run's --data takes it; None takes the default.
        jobs: Processes at the same time.
        show: Called with all trials whenever the scheduler checks them.
        machines: Where the runs execute.
        stack: The largest number of runs that one process trains; the runs of a process differ only in the seed.
    """

    study: Study
    out: Path
    source: Source
    data: str | None
    jobs: int
    show: Callable[[Sequence[Trial]], None]
    machines: Machines = LOCAL
    stack: int = 1
    interrupts: Interrupts = field(default_factory=Interrupts)
    _running: list[_Try] = field(default_factory=list)
    _closed: bool = False

    def run(self) -> int:
        """Run all remaining trials.

        Returns:
            0 when no trial has failed, 1 when some have, 130 when interrupted (the same command continues).

        Raises:
            FolderInUseError: Another process runs a study in this folder.
            ConfigError: The machines cannot work in this folder, or the source refuses what the folder holds.
            StorageError: The folder cannot be written to.
        """
        with locked(self.out, LOCK):
            self.source.open(self.out)
            before = {n: signal.signal(n, self.interrupts) for n in (signal.SIGINT, signal.SIGTERM)}
            try:
                self.machines.prepare(self.out)
                self._work()
            finally:
                for each in self._running:  # some are left only after an error in this process
                    each.handle.interrupt()
                for number, handler in before.items():
                    signal.signal(number, handler)
        if self.interrupts.count:
            return 130
        return 1 if any(trial.status == "failed" for trial in self.source.trials) else 0

    def _work(self) -> None:
        machine = self.study.machine
        if self.study.share_cores:
            threads = threads_each(self.jobs, machine.devices, self.study.on_gpu, self.machines)
            machine = replace(machine, threads=threads)
        waiting = Queue([trial for trial in self.source.trials if trial.status == "waiting"], self.stack)
        self._note()
        while True:
            starting = [] if self._stopping() else self._next(waiting)
            for group in starting:
                first, *others = group
                further = tuple((trial.config, trial.folder) for trial in others)
                self._start(Job(first.config, first.folder, machine, stacked=further), group)
            if not (self._running or starting or (waiting and not self._stopping())):
                break
            self.show(self.source.trials)
            time.sleep(POLL)
            for each in list(self._running):
                ending = self._watch(each)
                if ending is None:
                    continue
                self._running.remove(each)
                if ending.code == NOT_STACKABLE and len(each.trials) > 1:
                    self._unstack(each, waiting)
                else:
                    self._end(each, ending)
                for trial in each.trials:
                    if trial.status == "waiting" and not self.interrupts.count:
                        waiting.append(trial)
                self._note()
                self.show(self.source.trials)  # before a broken run is started again
        self.show(self.source.trials)

    def _stopping(self) -> bool:
        return bool(self.interrupts.count) or self._closed

    def _note(self) -> None:
        write_journal(self.out, self.study, self.source.trials)

    def _next(self, waiting: Queue) -> list[list[Trial]]:
        """The trials that fill the free places: waiting ones first, then further ones from the source."""
        room = self.jobs - len(self._running)
        starting = waiting.take(room)
        while len(starting) + len(waiting) < room and (trial := self.source.next()) is not None:
            starting.append([trial])
        return starting

    def _start(self, job: Job, group: list[Trial]) -> None:
        """Start the process of a run or of a stack; a run that cannot be started has failed."""
        positions = []
        try:
            for trial in group:
                trial.attempts += 1
                trial.folder.mkdir(parents=True, exist_ok=True)
                log = trial.folder / LOG
                positions.append(log.stat().st_size if log.exists() else 0)
            handle = self.machines.start(job, self.data)
        except StorageError:
            raise
        except OSError as error:
            for trial in group:
                self._settle(trial, "failed", f"it could not be started: {error}", broken=True)
            return
        self._running.append(_Try(group, handle, positions))
        self._place(self._running[-1])

    def _unstack(self, each: _Try, waiting: Queue) -> None:
        """Queue the runs of a process to be trained one at a time, since they cannot be stacked, and print why."""
        first = each.trials[0]
        waiting.alone.add(kind_of(first))
        print(
            f"{first.kind}: {reason(NOT_STACKABLE, first.folder / LOG, each.positions[0])}",
            file=sys.stderr,
            flush=True,
        )
        for trial in each.trials:
            trial.status, trial.attempts = "waiting", trial.attempts - 1

    def _place(self, each: _Try) -> None:
        """Record that a run has got a machine; its time starts now."""
        where = each.handle.where
        if where is not None and each.since is None:
            each.since = time.monotonic()
            for trial in each.trials:
                trial.status, trial.where = "running", where
            self._note()

    def _watch(self, each: _Try) -> Ending | None:
        """How a run ended; while it runs, pass interrupts on, and end it if its source or its timeout requires that."""
        ending = (
            each.handle.poll()
        )  # before the source reads the run's table, which is whole if the run has ended
        self._place(each)
        if len(each.trials) == 1:  # a single run of a stack cannot be ended
            (trial,) = each.trials
            if trial.status != "pruned" and self.source.watch(trial):
                self._settle(trial, "pruned")
                if ending is None:
                    each.handle.interrupt()
        if ending is not None:
            return ending
        for _ in range(self.interrupts.count - each.asked):
            each.handle.interrupt()
        each.asked = self.interrupts.count
        limit = self.study.timeout
        if limit is None or each.since is None:
            return None
        if time.monotonic() - each.since > len(each.trials) * limit:
            each.overdue = True
            each.handle.kill()
        return None

    def _end(self, each: _Try, ending: Ending) -> None:
        """Record how the runs of a process ended."""
        # Another process took a folder between our check and our start. A stack then trains none of its runs.
        taken = ending.code == BAD_INPUT and any(holder(trial.folder) is not None for trial in each.trials)
        for trial, position in zip(each.trials, each.positions, strict=True):
            if trial.status != "pruned":
                log = trial.folder / LOG
                said = log.exists() and log.stat().st_size > position
                # the reason why a whole stack ends is in the log of its first run
                own = reason(ending.code, log, position)
                whole = reason(ending.code, each.trials[0].folder / LOG, each.positions[0])
                self._end_one(trial, ending, each.overdue, taken, own if said else whole)

    def _end_one(self, trial: Trial, ending: Ending, overdue: bool, taken: bool, said: str) -> None:
        """Record how a run ended: finished, interrupted, to be tried again, or failed for good."""
        code = ending.code
        # The result is the last file that a run writes; a failure while its processes shut down does no harm.
        if (trial.folder / RESULT).exists():
            self._settle(trial, "finished")
            return
        if self.interrupts.count:
            trial.status = "waiting"
            return
        if taken:
            trial.status, trial.attempts = "waiting", trial.attempts - 1
            return
        why = ending.why or said
        if overdue and self.study.timeout is not None:
            why = f"not finished after {duration(self.study.timeout)}, the study's timeout"
        if code != BAD_INPUT and trial.attempts < self.study.attempts:
            trial.status, trial.reason = "waiting", why
        else:
            self._settle(trial, "failed", why, broken=code != BAD_INPUT)

    def _settle(self, trial: Trial, status: Status, why: str = "", broken: bool = False) -> None:
        trial.status, trial.reason = status, why
        self._closed = self.source.ended(trial, broken) or self._closed


def decided(study: Study, machines: Machines = LOCAL) -> Study:
    """The study with the accelerator `auto` resolved: GPUs if some machine has enough for a run."""
    devices = study.machine.devices
    if study.machine.accelerator != "auto":
        return study
    try:
        fit = machines.slots(devices, 1, True)
    except ConfigError:
        fit = 0
    return replace(study, machine=study.machine.resolved(devices if fit else 0))


def fair_jobs(study: Study, wanted: int | None, left: int, machines: Machines = LOCAL) -> int:
    """The number of runs at the same time: the requested number, else the study's, else as many as have a core for each of
    their processes; never more than are left.

    Raises:
        ConfigError: Fewer than one are requested, or no machine can take a run.
    """
    if wanted is not None and wanted < 1:
        raise ConfigError(f"--jobs is {wanted}; at least one run at a time is needed.")
    fit = machines.slots(study.machine.devices, 1, study.on_gpu)
    return max(1, min(wanted or study.jobs or fit, left))


def threads_each(jobs: int, devices: int = 1, gpu: bool = False, machines: Machines = LOCAL) -> int:
    """Threads of each process when `jobs` runs of `devices` processes share the cores; at most OMP_NUM_THREADS, if it is set."""
    most = re.match(r"[1-9]\d*", os.environ.get("OMP_NUM_THREADS", ""))
    threads = 1
    while (most is None or threads < int(most[0])) and machines.slots(devices, threads + 1, gpu) >= jobs:
        threads += 1
    return threads


def reason(code: int | None, log: Path, position: int) -> str:
    """Why a run ended, in one line: the last line of its log after `position`, or the signal that ended it."""
    if code is None:
        return "it is unknown how it ended"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        memory = ", as when memory runs out" if -code == signal.SIGKILL else ""
        return f"ended by {name}{memory}"
    try:
        with log.open("rb") as file:
            file.seek(position)
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"exit code {code}; {log} cannot be read: {error.strerror}"
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("equirelax: error: ") if said else f"exit code {code}, and nothing in {log}"


def failures(trials: Sequence[Trial | Recorded]) -> str:
    """The failed trials, each with its reason and the end of its log; empty if none has failed."""
    failed = [trial for trial in trials if trial.status == "failed"]
    lines = ["", f"{len(failed)} failed; the same command tries again:"] if failed else []
    for trial in failed:
        lines.append(f"  {trial.label}: {trial.reason}")
        log = trial.folder / LOG
        tail = log.read_text("utf-8", "replace").splitlines()[-TAIL:] if log.is_file() else []
        if len(tail) > 1:  # a single line is the reason itself
            lines += [f"    the end of {log}:", *(f"      {line}" for line in tail)]
    return "".join(f"{line}\n" for line in lines)
