"""What `Relaxation.plot` draws: the strengths over training, and the equivariance errors that were recorded."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 1000


class History:
    """Strengths after optimizer steps, thinned so that at most `LIMIT` of them are kept; all errors.

    Attributes:
        steps: number of optimizer steps so far.
        gammas: (step, strengths (residuals,)), in order.
        errors: (step, relative equivariance error, error without residuals or None), in order.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.gammas: list[tuple[int, Tensor]] = []
        self.errors: list[tuple[int, float, float | None]] = []
        self._stride = 1

    def step(self, gammas: Tensor) -> None:
        """Note the strengths after one more step; never waits for the device."""
        self.steps += 1
        if self.steps % self._stride:
            return
        self.gammas.append((self.steps, gammas))
        if len(self.gammas) > LIMIT:
            self._stride *= 2
            self.gammas = [one for one in self.gammas if one[0] % self._stride == 0]

    def error(self, relative: float, strict: float | None) -> None:
        """Note an equivariance error at the present step."""
        self.errors.append((self.steps, relative, strict))

    def curves(self) -> tuple[list[int], Tensor]:
        """The steps, and the strengths (steps, residuals) on the CPU."""
        return [step for step, _ in self.gammas], torch.stack([values for _, values in self.gammas]).cpu()

    def keep(self, columns: list[int]) -> None:
        """Forget the strengths of all residuals but these, as when the others were removed."""
        self.gammas = [(step, values[columns]) for step, values in self.gammas]
