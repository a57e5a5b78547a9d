"""The handle of a model without residuals, for methods that do not need any."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equirelax.errors import RelaxationStateError
from equirelax.relaxation import Relaxation, relaxation_of
from equirelax.relaxation.residual import Residual


class Unrelaxed(Relaxation):
    """The handle of a model that is not relaxed, and so has no residuals.

    Args:
        model: Any module, such as a network without any symmetry.

    Raises:
        RelaxationStateError: The model is relaxed: use its own handle.
    """

    may_be_empty = True

    def __init__(self, model: nn.Module) -> None:
        if any(isinstance(module, Residual) for module in model.modules()):
            raise RelaxationStateError(
                f"{type(model).__name__} is relaxed; take its handle, equirelax.relaxation_of(model)"
            )
        super().__init__(model)

    def gammas(self) -> Tensor:
        """An empty tensor of strengths, (0,), in float32 or better, on the model's device."""
        like = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        return torch.zeros(0, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def handle_of(model: Relaxation | nn.Module) -> Relaxation:
    """The given handle, the handle of a relaxed model, or `Unrelaxed` for a model without residuals."""
    if isinstance(model, Relaxation):
        return model
    relaxed = any(isinstance(module, Residual) for module in model.modules())
    return relaxation_of(model) if relaxed else Unrelaxed(model)
