"""Validation of a stack with one forward pass for all members, since a single one is bound by kernel launches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from equirelax_lab.tasks.task import Batch, Task
from equirelax_lab.training.evaluation import Evaluation, evaluating, in_form

Measure = Callable[[Task, nn.Module, Batch, int], Tensor]
"""Measures a batch with a number of samples: sums over them, in float64."""


def statistics(task: Task, model: nn.Module, batch: Batch, count: int) -> Tensor:
    """The task's statistics, (k,)."""
    return task.statistics(task.predict(model, batch), batch, count).double()


def summed_loss(task: Task, model: nn.Module, batch: Batch, count: int) -> Tensor:
    """The task's loss times the number of samples, 0-dimensional."""
    return count * task.loss(task.predict(model, batch), batch).double()


class StackedEvaluation:
    """Measures the networks of all members together when the first of them asks, and keeps the results for the others.

    A network that cannot be mapped in evaluation, such as one that differentiates for forces, is measured member by member.

    Args:
        networks: The stacked networks by the names of `Evaluation`.
        axes: The member axis of every parameter and buffer by name; None for one that members share.
    """

    def __init__(self, networks: Mapping[str, nn.Module], axes: Mapping[str, int | None]) -> None:
        self.networks, self.axes = networks, dict(axes)
        self.members: list[Evaluation] = []
        self.able = True
        self._found: dict[tuple[Measure, str, bool], Tensor] = {}

    def join(self, own: Evaluation) -> Evaluation:
        """Make a member's evaluation a part of this one; members join in their order."""
        self.members.append(own)
        return _MemberEvaluation(self, len(self.members) - 1, own)

    def forget(self) -> None:
        """Discard the results, since the weights have changed."""
        self._found.clear()

    def measured(self, measure: Measure, network: str, strict: bool) -> Tensor | None:
        """The result of `measure` for every member, with a leading member axis; None if it cannot be mapped."""
        key = (measure, network, strict)
        if self.able and key not in self._found:
            try:
                self._found[key] = self._mapped(measure, network, strict)
            except (RuntimeError, ValueError, TypeError):
                self.able = False
        return self._found[key] if self.able else None

    def _mapped(self, measure: Measure, network: str, strict: bool) -> Tensor:
        model, task = self.networks[network], self.members[0].task
        data = [each.val if measure is statistics else each.train for each in self.members]
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        axes = {f"model.{name}": self.axes.get(name, 0) for name in own}
        weights = {f"model.{name}": value for name, value in own.items()}
        module = _Measured(task, model, measure)
        total: Tensor | None = None
        with evaluating(model), in_form(model, strict):
            for start in range(0, len(data[0]), task.chunk):
                rows = range(start, min(start + task.chunk, len(data[0])))
                batch, batch_axes = _stacked([task.eval_batch(each, rows) for each in data])

                def of_one(weights: dict[str, Tensor], batch: Batch, count: int = len(rows)) -> Tensor:
                    found: Tensor = functional_call(module, weights, (batch, count))
                    return found

                part = torch.vmap(of_one, in_dims=(axes, batch_axes), randomness="error")(weights, batch)
                total = part if total is None else total + part
        if total is None:
            raise ValueError("there are no samples")  # each member raises this error itself
        return total


class _Measured(nn.Module):
    """A measure as a module, so that `functional_call` reaches the network's weights."""

    def __init__(self, task: Task, model: nn.Module, measure: Measure) -> None:
        super().__init__()
        self.task, self.model, self.measure = task, model, measure

    def forward(self, batch: Batch, count: int) -> Tensor:
        return self.measure(self.task, self.model, batch, count)


class _MemberEvaluation(Evaluation):
    """A member's part of a `StackedEvaluation`."""

    def __init__(self, whole: StackedEvaluation, index: int, own: Evaluation) -> None:
        super().__init__(own.task, own.networks, own.val, own.train)
        self.whole, self.index = whole, index

    def totals(self, network: str, strict: bool = False) -> Tensor:
        """See `Evaluation`."""
        found = self.whole.measured(statistics, network, strict)
        return super().totals(network, strict) if found is None else found[self.index]

    def loss_sum(self, network: str, strict: bool = False) -> Tensor:
        """See `Evaluation`."""
        found = self.whole.measured(summed_loss, network, strict)
        return super().loss_sum(network, strict) if found is None else found[self.index]


def _stacked(batches: Sequence[Batch]) -> tuple[Batch, dict[str, int | None]]:
    """The members' batches with a leading member axis, and the axis of every tensor; None for one that all share."""
    whole: Batch = {}
    axes: dict[str, int | None] = {}
    for name, first in batches[0].items():
        parts = [batch[name] for batch in batches]
        same = all(torch.equal(first, part) for part in parts[1:])
        whole[name], axes[name] = (first, None) if same else (torch.stack(parts), 0)
    return whole, axes
