"""The strict network, trained as its author would train it: the method that does nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from equirelax.methods.base import Method
from equirelax.methods.registry import register

if TYPE_CHECKING:
    from equirelax.relaxation import Relaxation


@register("strict", "no relaxation: residuals switched off, their weights frozen")
class Strict(Method):
    """The baseline: the residuals are switched off and their gamma is 0.

    Their weights are frozen, because DDP would otherwise wait for their gradients.

    Args:
        relaxation: The relaxed model, whose outputs become those of the strict model.
        settings: `Strict` has no settings.
    """

    capturable: ClassVar[bool] = True
    stackable: ClassVar[bool] = True

    def __init__(self, relaxation: Relaxation, settings: Method.Settings | None = None) -> None:
        super().__init__(relaxation, settings)
        for residual in relaxation.residuals.values():
            residual.fix_gamma()
            residual.set_gamma(0.0)
            residual.enabled = False
            residual.requires_grad_(False)
            for parameter in residual.parameters():
                parameter.grad = None  # otherwise an optimizer with momentum or decay would keep moving it

    def penalty(self) -> Tensor:
        """Return zero."""
        return self._term()

    def step(self) -> None:
        """Do nothing, but raise if the method is attached, as every method does."""
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
