"""The metric of a model over a split: relaxed, projected and folded."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from equirelax.benchmarks.task import Task
from equirelax.data import GraphSet
from equirelax.relaxation import cannot_fold, project
from equirelax.training.assembly import Assembly

CHUNK = 250


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients; its mode is restored."""
    before = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(before)


def error_sum(task: Task, model: nn.Module, data: GraphSet, chunk: int = CHUNK) -> Tensor:
    """Sum of the metric over the samples of `data`, a float64 scalar, in the metric's unit."""
    total = torch.zeros((), dtype=torch.float64, device=data.positions.device)
    with evaluating(model):
        for start in range(0, len(data), chunk):
            rows = range(start, min(start + chunk, len(data)))
            batch = data.batch(rows)
            total += task.error(task.predict(model, batch), batch).double() * len(rows)
    return total / task.metric.factor


def mean_error(task: Task, model: nn.Module, data: GraphSet) -> float:
    """Mean of the metric over the samples of `data`, in the metric's unit."""
    return float(error_sum(task, model, data)) / len(data)


def evaluate(assembly: Assembly, data: GraphSet) -> dict[str, float | None]:
    """The metric {relaxed, projected, folded}; folded is None where a residual cannot be folded. A strict
    model has one value thrice.
    """
    task, model, relaxation = assembly.task, assembly.model, assembly.relaxation
    relaxed = mean_error(task, model, data)
    if relaxation is None:
        return {"relaxed": relaxed, "projected": relaxed, "folded": relaxed}
    with relaxation.strict():
        projected = mean_error(task, model, data)
    folded = None
    if not cannot_fold(relaxation):
        copied = copy.deepcopy(model)
        project(copied, mode="fold")
        folded = mean_error(task, copied, data)
    return {"relaxed": relaxed, "projected": projected, "folded": folded}
