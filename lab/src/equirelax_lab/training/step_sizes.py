"""Measure by how much an optimizer step changes the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from equirelax_lab.training.assembly import Assembly

STEPS = 5
"""Number of steps measured at the end of an epoch: enough for a mean, few enough to cost nothing."""


class StepSizes:
    """Measures the change of the strict weights and of the residuals' weights in the last steps of an epoch.

    Args:
        assembly: The run's objects.
        steps: Optimizer steps of an epoch.
        members: In a stack of runs, the length of the leading axis of all weights; None for a single run.
    """

    def __init__(self, assembly: Assembly, steps: int, members: int | None = None) -> None:
        relaxation = assembly.relaxation
        if relaxation is None:
            self.weights: dict[str, list[nn.Parameter]] = {"strict": list(assembly.model.parameters())}
        else:
            self.weights = {
                "strict": list(relaxation.strict_parameters().values()),
                "residual": list(relaxation.residual_parameters().values()),
            }
        self.first = steps - STEPS
        self.members = members
        self._before: dict[str, list[Tensor]] = {}
        self._squares: dict[str, list[Tensor]] = {}

    def before_step(self, step: int) -> None:
        """Copy the weights, if `step` (from 0, within the epoch) is one of the last."""
        if step >= self.first:
            self._before = {name: [p.detach().clone() for p in own] for name, own in self.weights.items()}

    def after_step(self) -> None:
        """Compare the weights with the copies."""
        before, self._before = self._before, {}
        for name, copies in before.items():
            pairs = zip(self.weights[name], copies, strict=True)
            square = torch.stack([self._square(p.detach() - copy) for p, copy in pairs]).sum(0)
            self._squares.setdefault(name, []).append(square)

    def _square(self, change: Tensor) -> Tensor:
        """The sum of squares, 0-dimensional; (members,) in a stack."""
        squares = change.square()
        return squares.sum() if self.members is None else squares.reshape(self.members, -1).sum(1)

    def columns(self) -> list[dict[str, float]]:
        """The root mean square of the change of a weight in a step of this epoch.

        Returns:
            The columns update/strict and update/residual of every member; for a single run, a list of one.
        """
        squares, self._squares = self._squares, {}
        means = {name: torch.stack(values).mean(0).reshape(-1).tolist() for name, values in squares.items()}
        counts = {
            name: sum(p.numel() for p in own) // (self.members or 1) for name, own in self.weights.items()
        }
        return [
            {f"update/{name}": math.sqrt(own[member] / counts[name]) for name, own in means.items()}
            for member in range(self.members or 1)
        ]
