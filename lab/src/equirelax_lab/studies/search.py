"""Running a search: suggested settings as processes that share the cores, those that are behind ended early."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equirelax.errors import StorageError
from equirelax.files import storage_errors, write_text
from equirelax_lab.studies.engine import LOCK, Ending, Engine, Handle
from equirelax_lab.studies.found import best_of, described, final_study, outcome, trial_folder
from equirelax_lab.studies.run import BAD_INPUT, LOCAL, reason, threads_each
from equirelax_lab.studies.space import Search, figures
from equirelax_lab.studies.suggestions import HISTORY, Record, Status, Suggestions
from equirelax_lab.tasks.methods import choice
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.tasks.task import Metric
from equirelax_lab.training.folder import METRICS, RESULT, read_table
from equirelax_lab.training.jobs import LOG, Interrupts, Job, Queue
from equirelax_lab.training.lock import holder, locked
from equirelax_lab.training.machine import Machine

FOUND, BEST = "search.json", "best.yaml"
SECONDS_BETWEEN_LINES = 30.0
GIVE_UP = 3
"""Failed trials one after the other, after which something else than their settings is likely to be wrong."""


@dataclass(eq=False)
class _Entry:
    """A trial that runs or will.

    Attributes:
        number: Its number. values: Its settings by the keys of the axes. config, folder: Its run.
        attempts: How often it was started. handle: Its run, started. position: Where this start's log begins.
        asked: How often the run was asked to stop. ended: Whether its end is noted, though its run may still go on.
    """

    number: int
    values: dict[str, Any]
    config: RunConfig
    folder: Path
    attempts: int = 0
    handle: Handle | None = None
    position: int = 0
    asked: int = 0
    ended: bool = False


@dataclass(eq=False)
class Searcher:
    """Runs the trials of a search, at most `jobs` at a time, each with its share of the cores.

    What is optimised is the best validation value of a run, projected, or relaxed for methods that hand over the relaxed
    model. The test set plays no part.

    Attributes:
        search: What is searched for. metric: Of its benchmark. out: Its folder. data: Data root as a run's --data takes it;
            None: as usual. jobs: Runs at the same time. say: Called with a line now and then.
        engine: Where runs execute. poll: Seconds between two looks at them.
    """

    search: Search
    metric: Metric
    out: Path
    data: str | None
    jobs: int
    say: Callable[[str], None]
    engine: Engine = LOCAL
    poll: float = 0.2
    interrupts: Interrupts = field(default_factory=Interrupts)
    _running: list[_Entry] = field(default_factory=list)
    _failures: int = 0

    @property
    def column(self) -> str:
        """Where metrics.csv has what is optimised."""
        return "val/relaxed" if choice(self.search.config.method).deploys_relaxed else "val/projected"

    def run(self) -> int:
        """Run what is left, and write search.json and best.yaml.

        Returns:
            0; 1 when no trial has worked, or too many failed one after the other; 130 when interrupted (the same
            command goes on).

        Raises:
            FolderInUseError: another process searches in this folder.
            ConfigError: the folder holds another search. StorageError: nothing can be written there.
        """
        with locked(self.out, LOCK), storage_errors(self.out / HISTORY):
            memory = Suggestions(self.out, self.search, self.metric.higher_is_better)
            before = {n: signal.signal(n, self.interrupts) for n in (signal.SIGINT, signal.SIGTERM)}
            try:
                self.engine.prepare(self.out)
                self._work(memory)
            finally:
                for each in self._running:  # only after an error of our own
                    if each.handle is not None:
                        each.handle.interrupt()
                for number, handler in before.items():
                    signal.signal(number, handler)
            best = self._write(memory)
        if self.interrupts.count:
            return 130
        return 1 if best is None or self._failures >= GIVE_UP else 0

    def _work(self, memory: Suggestions) -> None:
        machine = Machine(
            threads=threads_each(self.jobs, engine=self.engine), progress=False, tensorboard=False
        )
        waiting = Queue(self._entry(memory, number) for number in memory.unfinished())
        told = time.monotonic()
        while self._running or self._may_go_on(memory, waiting):
            if self._may_go_on(memory, waiting):
                self._start(memory, waiting, machine)
            time.sleep(self.poll)
            for each in list(self._running):
                ending = self._watch(memory, each)
                if ending is not None:
                    self._running.remove(each)
                    if self._again(memory, each, ending):
                        waiting.append(each)
            if time.monotonic() - told > SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                self.say(self._line(memory))

    def _may_go_on(self, memory: Suggestions, waiting: Queue[_Entry]) -> bool:
        if self.interrupts.count or self._failures >= GIVE_UP:
            return False
        return bool(waiting) or memory.count() < self.search.trials

    def _entry(self, memory: Suggestions, number: int) -> _Entry:
        values = memory.values(number)
        return _Entry(number, values, self.search.run(values), self.out / trial_folder(number))

    def _start(self, memory: Suggestions, waiting: Queue[_Entry], machine: Machine) -> None:
        """Fill the free places: trials that were begun first."""
        starting = waiting.take(self.jobs - len(self._running))
        while (
            len(self._running) + len(starting) + len(waiting) < self.jobs
            and memory.count() < self.search.trials
        ):
            starting.append(self._entry(memory, memory.begin()))
        for each in starting:
            each.attempts += 1
            each.folder.mkdir(parents=True, exist_ok=True)
            log = each.folder / LOG
            each.position = log.stat().st_size if log.exists() else 0
            try:
                each.handle = self.engine.start(Job(each.config, each.folder, machine), self.data)
            except StorageError:
                raise
            except OSError as error:
                self._end(memory, each, "failed", reason=f"it could not be started: {error}")
                continue
            self._running.append(each)

    def _watch(self, memory: Suggestions, each: _Entry) -> Ending | None:
        """How a trial's run ended, if it has; one that is behind is asked to end."""
        if each.handle is None:
            return None
        ending = each.handle.poll()  # before its table is read, which is then whole
        if not each.ended and memory.report(each.number, validations(each.folder, self.column)):
            self._end(memory, each, "pruned")
            if ending is None:
                each.handle.interrupt()
        if ending is None:
            for _ in range(self.interrupts.count - each.asked):
                each.handle.interrupt()
            each.asked = self.interrupts.count
        return ending

    def _again(self, memory: Suggestions, each: _Entry, ending: Ending) -> bool:
        """Note how a trial ended; returns whether it is to be started again."""
        if each.ended:
            return False
        if (each.folder / RESULT).exists():
            value = self._best(validations(each.folder, self.column).values())
            if value is None:
                self._end(memory, each, "pruned", reason="no validation had a finite value")
            else:
                self._end(memory, each, "finished", value)
            return False
        if self.interrupts.count:
            return False
        if ending.code == BAD_INPUT and holder(each.folder) is not None:
            each.attempts -= 1  # another process was quicker, between our look and our start
            return True
        why = ending.why or reason(ending.code, each.folder / LOG, each.position)
        if ending.code != BAD_INPUT and each.attempts < self.search.attempts:
            self.say(f"trial {each.number}: broken, to be tried again ({why})")
            return True
        self._end(memory, each, "pruned" if ending.code == BAD_INPUT else "failed", reason=why)
        return False

    def _best(self, values: Any) -> float | None:
        best = None
        for value in values:
            if self.metric.better(value, self.metric.worst if best is None else best):
                best = value
        return best

    def _end(
        self, memory: Suggestions, each: _Entry, status: Status, value: float | None = None, reason: str = ""
    ) -> None:
        """Note the end of a trial, and say so."""
        each.ended = True
        memory.end(each.number, status, value, reason)
        self._failures = self._failures + 1 if reason else 0
        records = memory.records()
        best = best_of(records, self.metric)
        so_far = "" if best is None else f"; best so far: trial {best.number}, {figures(best.value)}"
        self.say(f"trial {each.number}: {described(records[each.number], self.search)}{so_far}")
        if self._failures == GIVE_UP:
            self.say(
                f"{GIVE_UP} trials have failed one after the other: no more are begun. The same command goes on."
            )
        self._write(memory)

    def _write(self, memory: Suggestions) -> Record | None:
        """search.json and best.yaml; returns the best trial so far."""
        records = memory.records()
        best = best_of(records, self.metric)
        found = outcome(self.search, self.metric, self.column, records)
        write_text(self.out / FOUND, json.dumps(found, indent=2) + "\n")
        if best is not None:
            write_text(self.out / BEST, final_study(self.search, best, len(records)))
        return best

    def _line(self, memory: Suggestions) -> str:
        total = self.search.config.training.epochs
        parts = [f"{memory.count() - len(memory.unfinished())} of {self.search.trials} trials done"]
        for each in self._running:
            with contextlib.suppress(OSError, KeyError, IndexError, ValueError):
                epoch = int(read_table(each.folder / METRICS)[-1]["epoch"]) + 1
                parts.append(f"trial {each.number}: epoch {epoch}/{total}")
        return "; ".join(parts)


def validations(folder: Path, column: str) -> dict[int, float]:
    """The finite validation values of a run by epoch, from 0 on; none before the first."""
    try:
        rows = read_table(folder / METRICS)
        found = {int(row["epoch"]): float(row[column]) for row in rows if row.get(column)}
    except (OSError, KeyError, ValueError):
        return {}
    return {epoch: value for epoch, value in found.items() if math.isfinite(value)}
