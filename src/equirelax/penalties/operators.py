"""Derivatives of sums that are quadratic in a weight, written out once for all orders.

The Lie sum and the norm sum of a linear residual are <W, L W> and <W, N W>. L and N are linear in W and their own
transposes, so that the gradients are 2 L W and 2 N W, and the gradient of <G, L W> is L G: L and N are each other's
only derivatives, and a backward pass with `create_graph=True` applies them once more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class Operators(ABC):
    """L and N of several residuals, on their stacked weights."""

    @abstractmethod
    def evaluate(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """<W, L W> and <W, N W>, each (residuals,), then L W and N W, each of the shape of the weights; without a graph."""


class Images(torch.autograd.Function):
    """(L W, N W)."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, operators: Operators) -> tuple[Tensor, Tensor]:
        ctx.operators = operators
        _, _, lie, norm = operators.evaluate(weights)
        return lie, norm

    @staticmethod
    def backward(ctx: Any, lie_grad: Tensor, norm_grad: Tensor) -> tuple[Tensor, None]:
        of_lie, _ = Images.apply(lie_grad, ctx.operators)
        _, of_norm = Images.apply(norm_grad, ctx.operators)
        return of_lie + of_norm, None


def quadratic_backward(ctx: Any, lie_grad: Tensor, norm_grad: Tensor) -> Tensor:
    """Gradient by the weights of a function whose context has `operators` and saved (W, L W, N W).

    Args:
        lie_grad, norm_grad: of the two sums, to be broadcast with the weights.
    """
    weights, lie, norm = ctx.saved_tensors
    # gradients are recorded in a backward pass only under create_graph
    if torch.is_grad_enabled():
        lie, norm = Images.apply(weights, ctx.operators)
    return 2 * (lie_grad * lie + norm_grad * norm)
