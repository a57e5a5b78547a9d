"""Doing nothing is a method too: the strict network, trained as its author would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

    def step(self) -> None:
        """Nothing, unless the method is attached: then it is an error, as for every method."""
        if self._attachment is not None:
            super().step()

    def _stepped(self) -> None:
        pass

    def _term(self) -> Tensor:
        return self._gammas().new_zeros(())

    def _advance(self) -> None:
        pass

    def _state(self) -> dict[str, Any]:
        return {}

    def _load(self, state: dict[str, Any]) -> None:
        pass
