"""A model's metric and loss over samples: relaxed, projected and folded."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from equirelax.errors import DataError
from equirelax.relaxation import cannot_fold, project, relaxation_of
from equirelax_lab.data import Samples
from equirelax_lab.tasks.task import Task
from equirelax_lab.training.assembly import Assembly
from equirelax_lab.training.averages import Averages


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, without gradients, and restore its mode afterwards."""
    before = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(before)


def totals(task: Task, model: nn.Module, data: Samples) -> Tensor:
    """Sums of the task's statistics over the samples of `data`, (k,) in float64.

    Raises:
        DataError: There are no samples.
    """
    total: Tensor | None = None
    with evaluating(model):
        for start in range(0, len(data), task.chunk):
            rows = range(start, min(start + task.chunk, len(data)))
            batch = task.eval_batch(data, rows)
            part = task.statistics(task.predict(model, batch), batch, len(rows)).double()
            total = part if total is None else total + part
    if total is None:
        raise DataError(f"{task.name}: there are no samples to evaluate on.")
    return total


def loss_sum(task: Task, model: nn.Module, data: Samples) -> Tensor:
    """The sum of the task's loss over the samples of `data`, 0-dimensional, in float64."""
    total = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    with evaluating(model):
        for start in range(0, len(data), task.chunk):
            rows = range(start, min(start + task.chunk, len(data)))
            batch = task.eval_batch(data, rows)
            total += len(rows) * task.loss(task.predict(model, batch), batch).double()
    return total


class Evaluation:
    """The measurements of a run's networks at the end of an epoch.

    Args:
        task: The run's task.
        networks: The networks by name: "trained", and "averaged" if the run has one.
        val: Validation samples, on the networks' device.
        train: Training samples whose loss is tracked, on that device.
    """

    def __init__(self, task: Task, networks: Mapping[str, nn.Module], val: Samples, train: Samples) -> None:
        self.task, self.networks = task, networks
        self.val, self.train = val, train

    def totals(self, network: str, strict: bool = False) -> Tensor:
        """The `totals` of a network on the validation samples, with its residuals or without."""
        model = self.networks[network]
        with in_form(model, strict):
            return totals(self.task, model, self.val)

    def loss_sum(self, network: str, strict: bool = False) -> Tensor:
        """The `loss_sum` of a network on the training samples, with its residuals or without."""
        model = self.networks[network]
        with in_form(model, strict):
            return loss_sum(self.task, model, self.train)


def evaluation_of(assembly: Assembly, averages: Averages | None, val: Samples, train: Samples) -> Evaluation:
    """The evaluation of the network that a run trains, and of its averaged network if it has one."""
    networks = {"trained": assembly.model}
    if averages is not None:
        networks["averaged"] = averages.model
    return Evaluation(assembly.task, networks, val, train)


def in_form(model: nn.Module, strict: bool) -> AbstractContextManager[object]:
    """A context in which a relaxed model is strict, or one that changes nothing."""
    return relaxation_of(model).strict() if strict else contextlib.nullcontext()


def mean_error(task: Task, model: nn.Module, data: Samples) -> float:
    """The headline metric over the samples of `data`, in the metric's unit."""
    return task.metrics(totals(task, model, data))[task.metric.name]


def evaluate_all(assembly: Assembly, data: Samples) -> dict[str, dict[str, float] | None]:
    """All metrics of the model in three forms: {relaxed, projected, folded}.

    `folded` is None if a residual cannot be folded. A model without relaxation has the same values three times.
    """
    task, model, relaxation = assembly.task, assembly.model, assembly.relaxation
    relaxed = task.metrics(totals(task, model, data))
    if relaxation is None:
        return {"relaxed": relaxed, "projected": relaxed, "folded": relaxed}
    with relaxation.strict():
        projected = task.metrics(totals(task, model, data))
    folded = None
    if not cannot_fold(relaxation):
        copied = copy.deepcopy(model)
        project(copied, mode="fold")
        folded = task.metrics(totals(task, copied, data))
    return {"relaxed": relaxed, "projected": projected, "folded": folded}


def headline_of(task: Task, values: dict[str, dict[str, float] | None]) -> dict[str, float | None]:
    """Only the headline metric, from the result of `evaluate_all`."""
    return {form: None if all_of is None else all_of[task.metric.name] for form, all_of in values.items()}
