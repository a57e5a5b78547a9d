"""Concatenation that stays cheap when its derivative is differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equirelax_lab.models.fast.switch import needs_ordinary


class _Join(torch.autograd.Function):
    """`torch.cat` along the first dimension.

    The derivative of torch's own `cat` is one slice for each part, and the derivative of a slice is written into zeros of the
    full size: as many arrays of zeros as there are parts. Here it is one split, whose derivative is one concatenation.
    """

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.sizes = [part.shape[0] for part in parts]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad.split_with_sizes(ctx.sizes)


def join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate parts (d_1, ...), (d_2, ...), ... to (d_1 + d_2 + ..., ...)."""
    if len(parts) == 1:
        return parts[0]
    if needs_ordinary():
        return torch.cat(list(parts))
    joined: Tensor = _Join.apply(*parts)
    return joined
