"""How long a study will take here: a part of one epoch of one run of every kind is timed, the rest is arithmetic."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from equirelax.errors import ConfigError
from equirelax_lab.data import Samples
from equirelax_lab.studies.live import duration
from equirelax_lab.studies.state import State
from equirelax_lab.tasks.registry import build_task
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training.assembly import Assembly, assemble, build_optimizer
from equirelax_lab.training.evaluation import totals
from equirelax_lab.training.loader import EpochLoader
from equirelax_lab.training.module import RelaxedModule

BUDGET = 20.0
"""Seconds that are spent on the training steps of one kind; a shorter epoch is timed whole."""
LEAST_STEPS = 2


@dataclass(frozen=True)
class Cost:
    """What a run of one kind costs.

    Attributes:
        start: Seconds until the first step: imports, data, model. epoch: Seconds of an epoch's training steps.
        validation: Seconds of one validation. test: Seconds to evaluate the test set once.
        forms: Times that an evaluation is done: of relaxed networks in several forms.
    """

    start: float
    epoch: float
    validation: float
    test: float
    forms: int

    def seconds(self, config: RunConfig, done: int = 0) -> float:
        """Of a run of which `done` epochs are done."""
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
    """Time steps, a validation batch and a test batch of one run, with as many threads as torch has now.

    Args:
        config: The run's settings. root: Data root. budget: Seconds for training steps; at least two are timed.
        devices: Processes that share every batch and the validation samples: the first one's share is timed, without what
            they then tell each other.

    Raises:
        DataError: data is missing. ConfigError: settings that do not work.
    """
    begun = time.perf_counter()
    task = build_task(config, root)
    train, val, test = task.load("train"), task.load("val"), task.load("test")
    batch_size, least = config.training.batch_size, task.smallest_batch
    loader = EpochLoader(train, task.train_batch, batch_size, config.seed, world=devices, smallest=least)
    if not len(loader):
        raise ConfigError(f"A training step needs {least * devices} samples or more; there are {len(train)}.")
    assembly = assemble(config, root, steps_per_epoch=len(loader))
    module = RelaxedModule(assembly, train)
    module.loader = loader
    start = time.perf_counter() - begun
    step = _step_seconds(module, loader, budget)
    forms = 1 if assembly.relaxation is None else 2
    evaluations = (
        _evaluation_seconds(assembly, data) for data in (val.subset(slice(None, None, devices)), test)
    )
    return Cost(start, step * len(loader), next(evaluations), next(evaluations), forms)


def _evaluation_seconds(assembly: Assembly, data: Samples) -> float:
    """Seconds to evaluate all of `data` once, from its first batch."""
    chunk = data.subset(slice(0, assembly.task.chunk))
    begun = time.perf_counter()
    totals(assembly.task, assembly.model, chunk)
    return (time.perf_counter() - begun) / len(chunk) * len(data)


def _step_seconds(module: RelaxedModule, loader: EpochLoader, budget: float) -> float:
    """Mean seconds of a training step, its batch included; the first, which warms up, counts only where there is no other."""
    assembly = module.assembly
    optimizer = build_optimizer(assembly)
    clip = assembly.config.training.gradient_clip
    assembly.model.train()
    seconds: list[float] = []
    begun = time.perf_counter()
    for index, batch in enumerate(loader):
        optimizer.zero_grad()
        module.training_step(batch, index).backward()
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
    """Seconds until the last of several runs has ended, started in their order, `jobs` at a time."""
    free = [0.0] * jobs
    for each in seconds:
        heapq.heappush(free, heapq.heappop(free) + each)
    return max(free, default=0.0)


def text(
    states: Sequence[State],
    costs: dict[tuple[str, str], Cost],
    jobs: int,
    threads: int,
    *,
    devices: int = 1,
    timeout: float | None = None,
    place: str = "here",
) -> str:
    """A table of kinds, and how long all that is left takes.

    Args:
        states: Of all runs. costs: By (grid, kind), of those that have runs left. jobs, threads: How they will run.
        devices: Processes of a run. timeout: Seconds of a try; kinds that take longer are named. place: Where, in words.
    """
    lines = [f"{'kind':44} {'runs left':>9} {'an epoch':>10} {'a run':>12} {'all of them':>12}"]
    left = [
        state
        for state in states
        if (state.trial.grid, state.trial.kind) in costs and state.status == "waiting"
    ]
    spent: list[float] = []
    for (grid, kind), cost in costs.items():
        mine = [s for s in left if (s.trial.grid, s.trial.kind) == (grid, kind)]
        each = [cost.seconds(s.trial.config, s.epochs) for s in mine]
        epoch = f"{cost.epoch:.2f} s" if cost.epoch < 100 else duration(cost.epoch)
        whole = duration(cost.seconds(mine[0].trial.config))
        lines.append(
            f"{f'{grid}: {kind}':44} {len(mine):9} {epoch:>10} {whole:>12} {duration(sum(each)):>12}"
        )
    for state in left:
        cost = costs[state.trial.grid, state.trial.kind]
        spent.append(cost.seconds(state.trial.config, state.epochs))
    processes = f"{devices} processes of " if devices > 1 else ""
    at_a_time = f"{jobs} at a time with {processes}{threads} thread{'s' if threads > 1 else ''} each"
    lines += [
        "",
        f"{len(left)} of {len(states)} runs are left. They take about {duration(overall(spent, jobs))} {place}, {at_a_time}.",
        "Timed one by one: runs that share memory and caches are slower, and measurements of the test set under further "
        "conditions come on top.",
    ]
    slow = dict.fromkeys(
        state.trial.kind
        for state, seconds in zip(left, spent, strict=True)
        if timeout is not None and seconds > timeout
    )
    if slow and timeout is not None:
        lines.append(f"Longer than the study's timeout, {duration(timeout)}: {', '.join(slow)}. Raise it.")
    return "\n".join(lines)
