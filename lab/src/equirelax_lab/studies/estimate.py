"""Estimate how long a study will take: time part of an epoch of one run of every kind, and compute the rest from that."""

from __future__ import annotations

import contextlib
import heapq
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from equirelax.errors import ConfigError, EquirelaxError
from equirelax_lab.data import Samples
from equirelax_lab.studies.study import Study
from equirelax_lab.studies.trials import Trial
from equirelax_lab.tasks.registry import build_task
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training.assembly import Assembly, assemble, build_optimizer
from equirelax_lab.training.evaluation import totals
from equirelax_lab.training.loader import EpochLoader
from equirelax_lab.training.objective import Objective
from equirelax_lab.training.progress import duration

BUDGET = 20.0
"""Seconds to spend on the training steps of one kind; a shorter epoch is timed as a whole."""
LEAST_STEPS = 2
QUICK = 10.0
"""Seconds after which no further kind is timed for a forecast. The steps of one kind may take a tenth of it."""
LEAST_EPOCHS = 20
"""Epochs of all runs below which nothing is timed: the runs themselves show just as soon how long they take."""
LONG = 60.0
"""Seconds below which no forecast is printed."""


@dataclass(frozen=True)
class Cost:
    """The cost of a run of one kind.

    Attributes:
        start: Seconds until the first step: imports, data and model.
        epoch: Seconds of an epoch's training steps.
        validation: Seconds to evaluate the validation set once.
        test: Seconds to evaluate the test set once.
        forms: Number of forms in which a network is evaluated; two for relaxed networks.
    """

    start: float
    epoch: float
    validation: float
    test: float
    forms: int

    def seconds(self, config: RunConfig, done: int = 0) -> float:
        """Seconds that are left of a run after `done` epochs."""
        training = config.training
        left = max(training.epochs - done, 0)
        validations = self.forms * self.validation * math.ceil(left / training.validate_every)
        final = (
            (self.forms + 1) * (self.validation + self.test)
            if self.forms > 1
            else self.validation + self.test
        )
        return self.start + left * self.epoch + validations + final


def measure(config: RunConfig, root: Path | None = None, budget: float = BUDGET, devices: int = 1) -> Cost:
    """Time training steps, a validation batch and a test batch of one run, with the threads that torch has now.

    Args:
        config: The run's settings.
        root: The data root; None takes the default.
        budget: Seconds to spend on training steps; at least two are timed after the first.
        devices: Processes that share every batch and the validation samples. The share of the first one is timed, without
            their communication.

    Raises:
        DataError: Data is missing.
        ConfigError: The settings do not work.
    """
    begun = time.perf_counter()
    task = build_task(config, root)
    train, val, test = task.load("train"), task.load("val"), task.load("test")
    batch_size, least = config.training.batch_size, task.smallest_batch
    loader = EpochLoader(train, task.train_batch, batch_size, config.seed, world=devices, smallest=least)
    if not len(loader):
        raise ConfigError(f"A training step needs {least * devices} samples or more; there are {len(train)}.")
    assembly = assemble(config, root, steps_per_epoch=len(loader))
    start = time.perf_counter() - begun
    step = _step_seconds(Objective(assembly, loader), loader, budget)
    forms = 1 if assembly.relaxation is None else 2
    evaluations = (
        _evaluation_seconds(assembly, data) for data in (val.subset(slice(None, None, devices)), test)
    )
    return Cost(start, step * len(loader), next(evaluations), next(evaluations), forms)


def forecast(trials: Sequence[Trial], study: Study, jobs: int, place: str, root: Path | None = None) -> str:
    """How long the remaining runs take, in one line, from finished runs of their kinds or a few timed steps.

    Args:
        trials: All runs.
        study: The study.
        jobs: Runs at the same time.
        place: Where the runs execute, in words.
        root: The data root; None takes the default.

    Returns:
        The line; empty if the time is short, or if runs need GPUs, on which nothing is timed here.
    """
    left = [trial for trial in trials if trial.status == "waiting"]
    if study.on_gpu or sum(t.config.training.epochs - t.epochs for t in left) < LEAST_EPOCHS:
        return ""
    costs = {(t.grid, t.kind): cost for t in trials if (cost := _past(t)) is not None}
    first = {(t.grid, t.kind): t for t in reversed(left)}
    begun = time.perf_counter()
    for key, trial in first.items():
        if key in costs or time.perf_counter() - begun > QUICK:
            continue
        # A run that cannot work reports the reason itself, and fails without stopping the others.
        with contextlib.suppress(EquirelaxError, RuntimeError, MemoryError):
            costs[key] = measure(trial.config, root, QUICK / 10, study.machine.devices)
    known = [costs[t.grid, t.kind].seconds(t.config, t.epochs) for t in left if (t.grid, t.kind) in costs]
    unknown = [sum(known) / len(known)] * (len(left) - len(known)) if known else []
    seconds = overall([*known, *unknown], jobs)
    if seconds < LONG:
        return ""
    return f"About {duration(seconds)} {place} (from runs that are finished, or a few timed steps)."


def _past(trial: Trial) -> Cost | None:
    """The measured cost of a finished run; None if it is not finished."""
    if trial.status != "finished":
        return None
    try:
        seconds = float(trial.progress()["seconds"])
    except (KeyError, ValueError):
        return None
    return Cost(0.0, seconds / trial.config.training.epochs, 0.0, 0.0, 1)


def _evaluation_seconds(assembly: Assembly, data: Samples) -> float:
    """Seconds to evaluate all of `data` once, extrapolated from its first batch."""
    chunk = data.subset(slice(0, assembly.task.chunk))
    begun = time.perf_counter()
    totals(assembly.task, assembly.model, chunk)
    return (time.perf_counter() - begun) / len(chunk) * len(data)


def _step_seconds(objective: Objective, loader: EpochLoader, budget: float) -> float:
    """Mean seconds of a training step with its batch; the first, slower step counts only if it is the only one."""
    assembly = objective.assembly
    optimizer = build_optimizer(assembly)
    clip = assembly.config.training.gradient_clip
    assembly.model.train()
    seconds: list[float] = []
    begun = time.perf_counter()
    for index, batch in enumerate(loader):
        optimizer.zero_grad()
        objective(batch, index, 0)[0].backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(assembly.model.parameters(), clip)
        optimizer.step()
        now = time.perf_counter()
        seconds.append(now - begun)
        begun = now
        if sum(seconds) > budget and len(seconds) > LEAST_STEPS:
            break
    timed = seconds[1:] or seconds
    return sum(timed) / len(timed)


def overall(seconds: Sequence[float], jobs: int) -> float:
    """Seconds until the last run has ended when runs of these `seconds` start in their order, `jobs` at a time."""
    free = [0.0] * jobs
    for each in seconds:
        heapq.heappush(free, heapq.heappop(free) + each)
    return max(free, default=0.0)


def text(
    trials: Sequence[Trial],
    costs: Mapping[tuple[str, str], Cost],
    study: Study,
    jobs: int,
    threads: int,
    place: str = "here",
) -> str:
    """A table of the kinds of runs, and how long all remaining runs take.

    Args:
        trials: All runs.
        costs: (grid, kind) -> cost, for the kinds that have runs left.
        study: The study, for the processes of its runs, and for its timeout: kinds that take longer are named.
        jobs: Runs at the same time.
        threads: Threads of each process.
        place: Where the runs execute, in words.
    """
    lines = [f"{'kind':44} {'runs left':>9} {'an epoch':>10} {'a run':>12} {'all of them':>12}"]
    left = [t for t in trials if t.status == "waiting" and (t.grid, t.kind) in costs]
    spent = [costs[t.grid, t.kind].seconds(t.config, t.epochs) for t in left]
    for (grid, kind), cost in costs.items():
        mine = {
            t: seconds for t, seconds in zip(left, spent, strict=True) if (t.grid, t.kind) == (grid, kind)
        }
        epoch = f"{cost.epoch:.2f} s" if cost.epoch < 100 else duration(cost.epoch)
        whole = duration(cost.seconds(next(iter(mine)).config))
        total = duration(sum(mine.values()))
        lines.append(f"{f'{grid}: {kind}':44} {len(mine):9} {epoch:>10} {whole:>12} {total:>12}")
    devices = study.machine.devices
    processes = f"{devices} processes of " if devices > 1 else ""
    at_a_time = f"{jobs} at a time with {processes}{threads} thread{'s' if threads > 1 else ''} each"
    lines += [
        "",
        f"{len(left)} of {len(trials)} runs are left. They take about {duration(overall(spent, jobs))} {place}, {at_a_time}.",
        "Each kind was timed alone: runs that share memory and caches are slower. Measurements of the test set under "
        "further conditions are not included.",
    ]
    limit = study.timeout
    if limit is not None and (slow := [t.kind for t, s in zip(left, spent, strict=True) if s > limit]):
        kinds = ", ".join(dict.fromkeys(slow))
        lines.append(f"Longer than the study's timeout, {duration(limit)}: {kinds}. Raise it.")
    return "\n".join(lines)
