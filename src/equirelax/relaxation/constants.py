"""Channels of a tensor product's second input that are constant: what was declared of them against what is seen in calls.

A residual of the first input folds into a tensor product through such a channel, so a wrong constant would give wrong
weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 4
"""So many rows must agree before a channel is taken for a constant that nobody declared."""


@dataclass(frozen=True)
class Seen:
    """What calls had on the second input's channels. Nothing here waits for the device until it is asked.

    Args:
        rows: number of rows looked at.
        low, high: smallest and largest value of every channel, (dim,).
    """

    rows: int
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, y: Tensor) -> Seen:
        """One call's second input (..., dim), of one row at least."""
        rows = y.detach().reshape(-1, y.shape[-1])
        return cls(len(rows), rows.amin(0), rows.amax(0))

    def and_of(self, y: Tensor) -> Seen:
        """With a further call."""
        other = Seen.of(y)
        low, high = self.low.to(other.low), self.high.to(other.high)
        return Seen(self.rows + other.rows, torch.minimum(low, other.low), torch.maximum(high, other.high))

    def _tolerance(self) -> float:
        return max(1e-5, 8 * torch.finfo(self.low.dtype).eps)

    def contradicts(self, constants: tuple[tuple[int, float], ...]) -> str:
        """The first declared (channel, value) that is not what was seen, in words; empty where all are."""
        low, high = self.low.tolist(), self.high.tolist()
        for channel, value in constants:
            if not 0 <= channel < len(low):
                return f"channel {channel} is declared constant, but the second input has {len(low)} channels"
            largest = max(abs(low[channel] - value), abs(high[channel] - value))
            if not largest <= self._tolerance() * max(abs(value), 1.0):
                was = (
                    f"{low[channel]:.6g}"
                    if low[channel] == high[channel]
                    else f"{low[channel]:.6g} to {high[channel]:.6g}"
                )
                return f"channel {channel} of the second input is declared to be {value:g}, but it was {was}"
        return ""

    def constants(self) -> dict[int, float]:
        """Channels that were the same, and not 0, in all rows."""
        if self.rows < ROWS:
            return {}
        return {
            channel: (a + b) / 2
            for channel, (a, b) in enumerate(zip(self.low.tolist(), self.high.tolist(), strict=True))
            if abs(b - a) <= self._tolerance() * max(abs(a), abs(b)) and a * b > 0
        }
