"""Vector-neuron building blocks (Deng et al., arXiv 2104.12229): features are channels of 3-vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from equirelax.errors import RepresentationError


class VNLinear(nn.Module):
    """`Y = W X`, which mixes channels of vectors and is O(3)-equivariant for any W.

    Args:
        in_channels, out_channels: numbers of vectors.

    Attributes:
        weight: (out_channels, in_channels).
        channel_axis, vector_axis: 1 and 2, for both input and output.
        takes_common: True; the second argument of `forward` holds further channels.
    """

    channel_axis = 1
    vector_axis = 2
    takes_common = True

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_channels)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels).uniform_(-bound, bound))

    def forward(self, x: Tensor, common: Tensor | None = None) -> Tensor:
        """Mix channels.

        Args:
            x: (batch, C, 3, points...), with any number of point axes, including none.
            common: (batch, in_channels - C, 3), vectors that all points share, such as their mean. The result is as if they
                were appended to the channels of x at every point, without copying them.

        Returns:
            (batch, out_channels, 3, points...).

        Raises:
            RepresentationError: the features have a wrong shape.
        """
        given = 0 if common is None else common.shape[1]
        if x.dim() < 3 or x.shape[2] != 3 or x.shape[1] + given != self.weight.shape[1]:
            raise RepresentationError(
                f"VNLinear: expected (batch, {self.weight.shape[1] - given}, 3, points...), got {tuple(x.shape)}"
            )
        own = self.weight if common is None else self.weight[:, : x.shape[1]]
        # (batch, C, 3 * points): one matrix product on a view, no transpose
        y = torch.bmm(own.expand(x.shape[0], -1, -1), x.flatten(2)).view(x.shape[0], -1, *x.shape[2:])
        if common is None:
            return y
        shared = torch.matmul(self.weight[:, x.shape[1] :], common)  # (batch, out_channels, 3)
        return y + shared.view(*shared.shape, *(1 for _ in x.shape[3:]))
