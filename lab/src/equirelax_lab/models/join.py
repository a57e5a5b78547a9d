"""Concatenation that stays cheap when its derivative is differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Join(torch.autograd.Function):
    """`torch.cat` along the first dimension.

    The derivative of torch's own is one slice for each part, and the derivative of a slice is written into zeros of the full
    size: as many arrays of zeros as there are parts. Here it is one split, whose derivative is one concatenation.
    """

    @staticmethod
    def forward(*parts: Tensor) -> Tensor:
        return torch.cat(parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.sizes = [part.shape[0] for part in inputs]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad.split_with_sizes(ctx.sizes)


def join(parts: Sequence[Tensor]) -> Tensor:
    """Parts (d_1, ...), (d_2, ...), ... one after another: (d_1 + d_2 + ..., ...)."""
    if len(parts) == 1:
        return parts[0]
    if torch.compiler.is_compiling():
        return torch.cat(list(parts))
    joined: Tensor = Join.apply(*parts)
    return joined
