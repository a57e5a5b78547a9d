"""PointNet: the same map on every point, and a maximum over the points. A baseline that is not equivariant.

Qi et al.: "PointNet: deep learning on point sets for 3D classification and segmentation", CVPR 2017 (arXiv 1612.00593),
section 4 and appendix C.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from equirelax_lab.models.neighbours import check_points
from equirelax_lab.models.vn_blocks import check_sizes, scaled


class TNet(nn.Module):
    """Predicts a matrix (size, size) from a whole cloud, the identity at the start.

    Args:
        size: number of features of a point.
        width: multiplies the numbers of channels (64, 128, 1024; 512, 256).
    """

    def __init__(self, size: int, width: float = 1.0) -> None:
        super().__init__()
        self.size = size
        large = scaled(1024, width)
        self.point = stack(size, scaled(64, width), scaled(128, width), large)
        self.cloud = stack(large, scaled(512, width), scaled(256, width))
        self.matrix = nn.Linear(scaled(256, width), size * size)
        nn.init.zeros_(self.matrix.weight)
        with torch.no_grad():
            self.matrix.bias.copy_(torch.eye(size).flatten())

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, n, size) -> (batch, size, size)."""
        pooled = each(self.point, x).amax(1)
        return self.matrix(self.cloud(pooled)).view(-1, self.size, self.size)


class PointNet(nn.Module):
    """Classifies point clouds, as published: maps 3-64-64 and 64-64-128-1024 of every point, each after a
    predicted matrix, the maximum over points, then 512-256-classes.

    Args:
        classes: number of classes.
        width: multiplies all numbers of channels; 1 is the published size.
        feature_transform: whether to use the predicted matrix between the two maps. The published loss also keeps that
            matrix close to orthogonal; that term is left out here.
        dropout: before the last layer.

    Raises:
        RepresentationError: a size is out of its range.
    """

    def __init__(
        self,
        classes: int = 40,
        width: float = 1.0,
        feature_transform: bool = True,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_sizes("PointNet", classes, 1, width)
        small, large = scaled(64, width), scaled(1024, width)
        self.input_transform = TNet(3, width)
        self.point1 = stack(3, small, small)
        self.feature_transform = TNet(small, width) if feature_transform else None
        self.point2 = stack(small, small, scaled(128, width), large)
        self.cloud = stack(large, scaled(512, width), scaled(256, width))
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(scaled(256, width), classes)

    def forward(self, points: Tensor) -> Tensor:
        """Compute logits (batch, classes).

        Args:
            points: (batch, n, 3), n >= 1, finite. In training a batch has two clouds or more (batch norm).

        Raises:
            RepresentationError: the points have a wrong shape.
            NonFiniteError: a coordinate is NaN or infinite.
        """
        check_points(points, "PointNet")
        x = points @ self.input_transform(points)
        x = each(self.point1, x)  # (batch, n, 64)
        if self.feature_transform is not None:
            x = x @ self.feature_transform(x)
        x = each(self.point2, x).amax(1)  # (batch, 1024)
        return self.readout(self.dropout(self.cloud(x)))


def stack(*sizes: int) -> nn.Sequential:
    """Build linear map, batch norm and ReLU from each size to the next; without biases, which the norm would remove."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers)


def each(network: nn.Module, x: Tensor) -> Tensor:
    """Apply `network` to every point, as rows of one matrix: (batch, n, C) -> (batch, n, C')."""
    rows: Tensor = network(x.reshape(-1, x.shape[-1]))
    return rows.view(*x.shape[:-1], -1)
