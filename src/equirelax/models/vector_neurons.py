"""Vector-neuron building blocks (Deng et al., arXiv 2104.12229): features are channels of 3-vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from equirelax.errors import RepresentationError


class VNLinear(nn.Module):
    """`Y = W X`: mixes channels, leaves every vector's direction to the rotations; O(3)-equivariant for any W.

    Args:
        in_channels, out_channels: numbers of vectors.

    Attributes:
        weight: (out_channels, in_channels).
        channel_axis, vector_axis: 1 and 2, of input and output alike.
    """

    channel_axis = 1
    vector_axis = 2

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_channels)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Mix channels.

        Args:
            x: (batch, in_channels, 3, points...), with any number of point axes, also none.

        Returns:
            (batch, out_channels, 3, points...).
        """
        if x.dim() < 3 or x.shape[1] != self.weight.shape[1]:
            raise RepresentationError(
                f"VNLinear: expected (batch, {self.weight.shape[1]}, 3, points...), got {tuple(x.shape)}"
            )
        # (batch, C, 3 * points): one matrix product on a view, no transpose
        return torch.matmul(self.weight, x.flatten(2)).view(x.shape[0], -1, *x.shape[2:])
