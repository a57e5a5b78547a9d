"""VN-PointNet: PointNet on vectors; its class probabilities do not change when the cloud is rotated.

Deng et al.: "Vector neurons: a general framework for SO(3)-equivariant networks", ICCV 2021 (arXiv 2104.12229), section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equirelax_lab.models.neighbours import check_neighbours, check_points, edge_features, knn
from equirelax_lab.models.vector_neurons import VNLinear
from equirelax_lab.models.vn_blocks import (
    VNBatchNorm,
    VNBlock,
    VNFrame,
    check_sizes,
    pool,
    scaled,
    scaled_vectors,
)


class VNFeatureTransform(nn.Module):
    """One global vector per channel, given to every point: PointNet's feature transform on vectors.

    Args:
        channels: of input and output.
        width, pooling, negative_slope: as for `VNPointNet`.
    """

    def __init__(self, channels: int, width: float, pooling: str, negative_slope: float) -> None:
        super().__init__()
        sizes = [scaled_vectors(c, width) for c in (64, 128, 1024, 512, 256)]
        self.conv1 = VNBlock(channels, sizes[0], negative_slope)
        self.conv2 = VNBlock(sizes[0], sizes[1], negative_slope)
        self.conv3 = VNBlock(sizes[1], sizes[2], negative_slope)
        self.pool = pool(pooling, sizes[2])
        self.fc1 = VNBlock(sizes[2], sizes[3], negative_slope)
        self.fc2 = VNBlock(sizes[3], sizes[4], negative_slope)
        self.fc3 = VNLinear(sizes[4], channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, 3, n) -> (batch, channels, 3)."""
        x = self.pool(self.conv3(self.conv2(self.conv1(x))))
        return self.fc3(self.fc2(self.fc1(x)))


class VNPointNet(nn.Module):
    """Classifies clouds; SO(3)-invariant (not O(3): the first layer reads a cross product). Not translation-invariant.

    Args:
        classes: number of classes.
        neighbours: k of the only graph, that of the points; a point is its own neighbour. Clouds with fewer points use all.
        width: multiplies all numbers of channels; 1 is the published size (21, 42, 341 vectors).
        pooling: "mean" (published) or "max", of neighbours and in the feature transform.
        feature_transform: whether to use the global vectors of `VNFeatureTransform`.
        negative_slope: negative slope of the vector ReLU, in [0, 1].
        dropout: dropout in the invariant head.

    Raises:
        RepresentationError: a size is out of its range.
    """

    def __init__(
        self,
        classes: int = 40,
        neighbours: int = 20,
        width: float = 1.0,
        pooling: str = "mean",
        feature_transform: bool = True,
        negative_slope: float = 0.0,
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        check_sizes("VNPointNet", classes, neighbours, width)
        self.neighbours = neighbours
        small, middle, large = (scaled_vectors(c, width) for c in (64, 128, 1024))
        hidden = [scaled(c, width) for c in (512, 256)]
        self.conv_pos = VNBlock(3, small, negative_slope)
        self.pool = pool(pooling, small)
        self.conv1 = VNBlock(small, small, negative_slope)
        self.fstn = VNFeatureTransform(small, width, pooling, negative_slope) if feature_transform else None
        self.conv2 = VNBlock(2 * small if feature_transform else small, middle, negative_slope)
        self.conv3 = VNLinear(middle, large)
        self.bn3 = VNBatchNorm(large)
        self.std_feature = VNFrame(2 * large, negative_slope)
        self.fc1 = nn.Linear(6 * large, hidden[0])
        self.bn1 = nn.BatchNorm1d(hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm1d(hidden[1])
        self.fc3 = nn.Linear(hidden[1], classes)

    def forward(self, points: Tensor, neighbours: Tensor | None = None) -> Tensor:
        """Compute log-probabilities (batch, classes).

        Args:
            points: (batch, n, 3), n >= 1, finite; copies of a point count as separate points.
            neighbours: (batch, n, k) long, the graph if already known (`models.neighbours.knn`); rotations do not
                change it.

        Raises:
            RepresentationError: points or neighbours have a wrong shape.
            NonFiniteError: a coordinate is NaN or infinite.
        """
        check_points(points, "VNPointNet")
        check_neighbours(neighbours, points, "VNPointNet")
        x = points.transpose(1, 2).unsqueeze(1).contiguous()  # (batch, 1, 3, n)
        if neighbours is None:
            neighbours = knn(x.squeeze(1), self.neighbours)
        x = self.pool(self.conv_pos(edge_features(x, neighbours, cross=True)))
        x = self.conv1(x)  # (batch, 21, 3, n)
        x = self.conv2(x, None if self.fstn is None else self.fstn(x))
        x = self.bn3(self.conv3(x))  # (batch, 341, 3, n)
        y = self.std_feature(x, x.mean(-1)).amax(-1).flatten(1)  # (batch, 2046)
        y = torch.relu(self.bn1(self.fc1(y)))
        y = torch.relu(self.bn2(self.dropout(self.fc2(y))))
        return torch.log_softmax(self.fc3(y), dim=1)
