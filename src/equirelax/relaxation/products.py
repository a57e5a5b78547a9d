"""Residuals of the first inputs of tensor products, and constant channels of the second inputs.

Such a residual folds into the tensor product through a constant channel, and a wrong constant would give wrong weights. Declared
constants are therefore compared with the values in calls.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import EquirelaxWarning
from equirelax.relaxation.columns import Columns
from equirelax.relaxation.kinds import ResidualMap
from equirelax.relaxation.residual import Residual, residual_for
from equirelax.relaxation.sites import RowSite, argument, parameters_of
from equirelax.relaxation.surroundings import in_transform

ROWS = 4
"""Number of rows that must agree before an undeclared channel is suggested as a constant."""


@dataclass(frozen=True)
class Seen:
    """The values of the second input's channels in calls. Recording them does not wait for the device; reading them does.

    Args:
        rows: number of rows seen.
        low, high: smallest and largest value of every channel, (dim,).
    """

    rows: int
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, y: Tensor) -> Seen:
        """Record one call's second input (..., dim), with at least one row."""
        rows = y.detach().reshape(-1, y.shape[-1])
        return cls(len(rows), rows.amin(0), rows.amax(0))

    def and_of(self, y: Tensor) -> Seen:
        """Include a further call."""
        other = Seen.of(y)
        low, high = self.low.to(other.low), self.high.to(other.high)
        return Seen(self.rows + other.rows, torch.minimum(low, other.low), torch.maximum(high, other.high))

    def _tolerance(self) -> float:
        return max(1e-5, 8 * torch.finfo(self.low.dtype).eps)

    def contradicts(self, constants: tuple[tuple[int, float], ...]) -> str:
        """Describe the first declared (channel, value) that differs from the values seen; empty if none does."""
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
        """The channels that had the same nonzero value in all rows."""
        if self.rows < ROWS:
            return {}
        return {
            channel: (a + b) / 2
            for channel, (a, b) in enumerate(zip(self.low.tolist(), self.high.tolist(), strict=True))
            if abs(b - a) <= self._tolerance() * max(abs(a), abs(b)) and a * b > 0
        }


@dataclass(frozen=True)
class ProductSite(RowSite):
    """A site from all features of a tensor product's first input to all features of its output.

    Args:
        second: Position and name of the second input.
        constants: (channel, value) pairs of constant channels of the second input, of which folding needs one.
    """

    second: tuple[int, str] = field(kw_only=True)
    constants: tuple[tuple[int, float], ...] = field(default=(), kw_only=True)

    def with_constants(self, constants: tuple[tuple[int, float], ...]) -> ProductSite:
        """Return the site with these constants instead of its own."""
        return dataclasses.replace(self, constants=constants)


def second_input(module: nn.Module) -> tuple[int, str]:
    """Position and name of the second argument of a module's forward."""
    found = parameters_of(module)
    named = len(found) > 1 and found[1].kind is found[1].POSITIONAL_OR_KEYWORD
    return 1, found[1].name if named else ""


@residual_for(ProductSite)
class ProductResidual(Residual):
    """A residual of a tensor product, which records the second input of calls.

    Attributes:
        second_seen: Values of the second input in the calls so far.
    """

    site: ProductSite

    def __init__(self, site: ProductSite, map: ResidualMap, reference: Tensor | None = None) -> None:
        super().__init__(site, map, reference)
        self.second_seen: Seen | None = None
        self._calls = 0

    def take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Columns:
        """Read the call as `Residual.take` does, and record its second input.

        Declared constants are compared with the first call, and with the calls 1, 2, 4, 8, ... for `project`. If none are
        declared, the first call is recorded for a hint in `project`.
        """
        self._look(module, args, kwargs)
        return super().take(module, args, kwargs)

    def _look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or in_transform():
            return
        constants, first = self.site.constants, self.second_seen is None
        self._calls += 1
        if not first and (not constants or self._calls & (self._calls - 1)):
            return
        y = argument(args, kwargs, *self.site.second)
        if not y.numel():
            return
        self.second_seen = Seen.of(y) if self.second_seen is None else self.second_seen.and_of(y)
        if first and constants and (wrong := self.second_seen.contradicts(constants)):
            warnings.warn(
                f"{self.name_of(module)}: {wrong}. Its residual trains anyway, but cannot be folded: correct the Constant "
                f"in the placement, or leave it out",
                EquirelaxWarning,
                stacklevel=2,
            )

    def why_not_folded(self) -> str:
        """The declared constant that some call contradicts."""
        seen, constants = self.second_seen, self.site.constants
        wrong = seen.contradicts(constants) if constants and seen is not None else ""
        return f"{wrong} in some call. Correct its Constant in the placement" if wrong else ""

    def fold_hint(self) -> str:
        """An undeclared constant that the first call suggests."""
        found = {} if self.site.constants or self.second_seen is None else self.second_seen.constants()
        for channel, value in found.items():
            return (
                f"In the first call channel {channel} was {value:.6g} in every row: "
                f"Constant({self.site.path!r}, {channel}, {value:.6g}) if it always is"
            )
        return ""

    def fold_note(self) -> str:
        """A remark if no call was seen that could contradict the declared constant."""
        unseen = self.site.constants and self.second_seen is None
        return "its declared constant was not seen in any call" if unseen else ""
