"""By how much an optimizer step changes the weights."""

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
    """

    def __init__(self, assembly: Assembly, steps: int) -> None:
        relaxation = assembly.relaxation
        if relaxation is None:
            self.weights: dict[str, list[nn.Parameter]] = {"strict": list(assembly.model.parameters())}
        else:
            self.weights = {
                "strict": list(relaxation.strict_parameters().values()),
                "residual": list(relaxation.residual_parameters().values()),
            }
        self.first = steps - STEPS
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
            square = torch.stack([(p.detach() - copy).square().sum() for p, copy in pairs]).sum()
            self._squares.setdefault(name, []).append(square)

    def columns(self) -> dict[str, float]:
        """update/strict and update/residual: root mean square of the change of a weight in a step of this epoch."""
        squares, self._squares = self._squares, {}
        return {
            f"update/{name}": math.sqrt(
                float(torch.stack(values).mean()) / sum(p.numel() for p in self.weights[name])
            )
            for name, values in squares.items()
        }
