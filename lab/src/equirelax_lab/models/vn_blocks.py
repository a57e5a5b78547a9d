"""Blocks of vector-neuron networks (Deng et al., arXiv 2104.12229): features (batch, channels, 3, points...).

All linear maps, of features and of directions, are `VNLinear`. Blocks act on every point separately and accept features with
any number of point axes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.vector_neurons import VNLinear

EPS = 1e-6
POOLINGS = ("mean", "max")


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Compute inner products of 3-vectors on axis 2: (batch, C, 3, points...) twice -> (batch, C, points...)."""
    a, b = x.unbind(2), y.unbind(2)
    return torch.addcmul(torch.addcmul(a[0] * b[0], a[1], b[1]), a[2], b[2])


class VNBatchNorm(nn.Module):
    """Batch norm of the vectors' lengths (section 3.4): `x / (|x| + eps) BatchNorm(|x| + eps)`, eps = 1e-6.

    Args:
        channels: number of vectors.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)

    def scale(self, x: Tensor) -> Tensor:
        """Compute the factor of every vector: (batch, channels, 3, points...) -> (batch, channels, points...)."""
        # the floor keeps the slope of the square root finite at 0, where its own gradient is 0
        length = dot(x, x).clamp(min=torch.finfo(x.dtype).tiny).sqrt() + EPS
        columns = length if length.dim() == 2 else length.flatten(2)
        return self.bn(columns).view_as(length) / length

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, 3, points...) -> the same shape."""
        return x * self.scale(x).unsqueeze(2)


class VNBlock(nn.Module):
    """Linear map, batch norm of the lengths, and the vector ReLU (equations 5-7).

    With p = norm(W x) and d = D x: `p - (1 - slope) min(<p, d>, 0) / (|d|^2 + 1e-6) d`, which is p on one side of the
    plane across d and, for slope 0, the projection onto that plane on the other.

    Args:
        in_channels, out_channels: numbers of vectors.
        negative_slope: negative slope, in [0, 1].
        shared_direction: whether all channels share one direction.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        negative_slope: float = 0.2,
        shared_direction: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= negative_slope <= 1:
            raise RepresentationError(
                f"VNBlock: negative_slope is {negative_slope}; expected a number in [0, 1]"
            )
        self.negative_slope = negative_slope
        self.map_to_feat = VNLinear(in_channels, out_channels)
        self.map_to_dir = VNLinear(in_channels, 1 if shared_direction else out_channels)
        self.batchnorm = VNBatchNorm(out_channels)

    def forward(self, x: Tensor, common: Tensor | None = None) -> Tensor:
        """(batch, in_channels, 3, points...) -> (batch, out_channels, 3, points...); `common` as for `VNLinear`."""
        p, d = self.map_to_feat(x, common), self.map_to_dir(x, common)
        scale = self.batchnorm.scale(p)
        below = (scale * dot(p, d)).clamp(max=0)
        shift = (self.negative_slope - 1) * below / (dot(d, d) + EPS)
        return torch.addcmul(p * scale.unsqueeze(2), shift.unsqueeze(2), d)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"negative_slope={self.negative_slope}"


class VNMeanPool(nn.Module):
    """Mean over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, 3, ..., points) -> (batch, channels, 3, ...)."""
        return x.mean(-1)


class VNMaxPool(nn.Module):
    """Selects, in every channel, the vector that reaches furthest along a learnt direction (section 3.3).

    Args:
        channels: number of vectors.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.map_to_dir = VNLinear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, 3, ..., points) -> (batch, channels, 3, ...)."""
        furthest = dot(x, self.map_to_dir(x)).argmax(-1, keepdim=True)
        index = furthest.unsqueeze(2).expand(*x.shape[:-1], 1)
        return x.gather(-1, index).squeeze(-1)


def pool(pooling: str, channels: int) -> nn.Module:
    """Build the pooling called "mean" or "max".

    Raises:
        RepresentationError: the name is neither.
    """
    if pooling not in POOLINGS:
        raise RepresentationError(f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}")
    return VNMeanPool() if pooling == "mean" else VNMaxPool(channels)


class VNFrame(nn.Module):
    """Computes invariants (section 3.5): coordinates of every vector in a learnt frame of three vectors at each point.

    Args:
        channels: number of vectors.
        negative_slope: negative slope of its two blocks.
    """

    def __init__(self, channels: int, negative_slope: float = 0.2) -> None:
        super().__init__()
        half, quarter = max(1, channels // 2), max(1, channels // 4)
        self.vn1 = VNBlock(channels, half, negative_slope)
        self.vn2 = VNBlock(half, quarter, negative_slope)
        self.vn_lin = VNLinear(quarter, 3)

    def forward(self, x: Tensor, common: Tensor) -> Tensor:
        """Invariants (batch, channels, 3, n), axis 2 counting the frame's vectors.

        Args:
            x: (batch, channels - c, 3, n).
            common: (batch, c, 3), the same for all points: the last c channels.
        """
        frame = self.vn_lin(self.vn2(self.vn1(x, common)))  # (batch, 3, 3, n)
        own = torch.stack([dot(x, vector.unsqueeze(1)) for vector in frame.unbind(1)], dim=2)
        shared = torch.matmul(common.unsqueeze(1), frame).transpose(1, 2)  # (batch, c, 3, n)
        return torch.cat([own, shared], dim=1)


def scaled(channels: int, width: float) -> int:
    """Scale a published number of channels by `width`, to at least 1."""
    return max(1, int(channels * width))


def scaled_vectors(channels: int, width: float) -> int:
    """Compute the number of vectors, a third of the channels rounded down as published (64 -> 21), at least 1."""
    return max(1, int(channels * width) // 3)


def check_sizes(name: str, classes: int, neighbours: int, width: float) -> None:
    """Check sizes.

    Raises:
        RepresentationError: a size is out of its range; the message names the model and says what was expected.
    """
    if classes < 1 or neighbours < 1 or not width > 0:
        raise RepresentationError(
            f"{name}: classes and neighbours must be at least 1 and width above 0, got {classes}, {neighbours}, {width}"
        )
