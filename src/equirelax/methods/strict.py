"""Doing nothing is a method too: the strict network, trained as its author would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equirelax.methods.base import Method
from equirelax.methods.registry import register

if TYPE_CHECKING:
    from equirelax.relaxation import Relaxation


@register("strict", "no relaxation: residuals switched off, their weights frozen")
class Strict(Method):
    """The baseline: residuals switched off, gamma 0, their weights frozen (DDP would wait for them).

    Args:
        relaxation: the relaxed model; its outputs are those of the strict model.
    """

    def __init__(self, relaxation: Relaxation) -> None:
        super().__init__(relaxation)
        for residual in relaxation.residuals.values():
            residual.fix_gamma()
            residual.set_gamma(0.0)
            residual.enabled = False
            residual.requires_grad_(False)

    def penalty(self) -> Tensor:
        """Zero."""
        return self._term()

    def step(self, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None) -> None:
        """Nothing; the argument is there for loops that serve all methods."""

    def _term(self) -> Tensor:
        return self._gammas().new_zeros(())

    def _advance(self, moved: bool) -> None:
        pass

    def _state(self) -> dict[str, Any]:
        return {}

    def _load(self, state: dict[str, Any]) -> None:
        pass
