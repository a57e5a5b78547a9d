"""The course of gamma under ACE's two Adams where the task does not depend on it: an orbit around 0.

ACE as released (arXiv 2505.13631) updates gamma and its multiplier lambda with Adam. Where the task's loss does not depend on
gamma, both have only the gradient of lambda gamma, and Adam normalises its size. gamma oscillates, with an amplitude that is
set by the learning rate of gamma and a period that is set by Adam's betas.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from equirelax.errors import ConfigError
from equirelax.methods.dual import BETAS

CURVATURES = (0.0, 0.01, 0.1, 1.0)
"""Curvatures c of the task's loss in gamma, c/2 gamma^2, that are shown side by side."""


def simulate(
    steps: int,
    *,
    lr: float = 9e-4,
    dual_lr: float = 8e-4,
    dual_eps: float = 1e-8,
    initial: float = 1.0,
    curvature: float = 0.0,
    residuals: int = 1,
) -> tuple[list[float], list[float]]:
    """Simulate (gamma, lambda) before every step and after the last one, each `steps + 1` numbers, float64.

    gamma descends and lambda ascends on lambda gamma + curvature / 2 gamma^2, both by Adam with its default betas, both with
    gradients at the same point: the terms of one residual in ACE's Lagrangian, and a task that is quadratic in gamma.

    Args:
        steps: Number of optimizer steps, >= 1.
        lr: Learning rate of gamma.
        dual_lr, dual_eps: Learning rate and epsilon of lambda.
        initial: gamma at the start; lambda starts at 0.
        curvature: c >= 0.
        residuals: Number of residuals over whose terms the mean is taken; 1 for a sum.

    Raises:
        ConfigError: A number is out of range.
    """
    if steps < 1 or curvature < 0 or residuals < 1 or not (lr > 0 and dual_lr > 0):
        raise ConfigError(
            f"steps is {steps}, curvature {curvature}, residuals {residuals}, lr {lr} and dual_lr {dual_lr}; expected at "
            "least one step and residual, no negative curvature and learning rates above 0"
        )
    primal, dual = _Adam(lr, 1e-8), _Adam(dual_lr, dual_eps)
    gammas, multipliers = [float(initial)], [0.0]
    for _ in range(steps):
        g, m = gammas[-1], multipliers[-1]
        gammas.append(g - primal.step(m / residuals + curvature * g))
        multipliers.append(m + dual.step(g))
    return gammas, multipliers


class _Adam:
    """Adam for one number; a tensor of one entry would take a hundred times as long."""

    def __init__(self, lr: float, eps: float) -> None:
        self.lr, self.eps = lr, eps
        self.first = self.second = 0.0
        self.count = 0

    def step(self, gradient: float) -> float:
        """The step: a descent subtracts it, an ascent adds it."""
        self.count += 1
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * gradient
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * gradient**2
        corrected = self.second / (1 - BETAS[1] ** self.count)
        return self.lr * self.first / (1 - BETAS[0] ** self.count) / (math.sqrt(corrected) + self.eps)


def describe(gammas: Sequence[float]) -> dict[str, Any]:
    """Where gamma crosses zero, and how large it gets in between: {"crossings", "half_periods", "amplitudes"}.

    Crossings are steps (the first one after the change of sign), half-periods the steps between two crossings, amplitudes the
    largest abs(gamma) between two crossings.
    """
    crossings = [
        i for i in range(1, len(gammas)) if gammas[i - 1] * gammas[i] < 0 or gammas[i] == 0 != gammas[i - 1]
    ]
    between = list(itertools.pairwise(crossings))
    return {
        "crossings": crossings,
        "half_periods": [last - first for first, last in between],
        "amplitudes": [max(abs(g) for g in gammas[first:last]) for first, last in between],
    }
