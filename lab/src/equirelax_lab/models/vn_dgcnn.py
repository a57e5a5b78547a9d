"""VN-DGCNN: edge convolutions on vectors, over graphs of nearest neighbours in feature space.

Deng et al.: "Vector neurons: a general framework for SO(3)-equivariant networks", ICCV 2021 (arXiv 2104.12229), section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equirelax_lab.models.neighbours import check_neighbours, check_points, edge_features, knn
from equirelax_lab.models.vn_blocks import VNBlock, VNFrame, check_sizes, pool, scaled, scaled_vectors


class VNDGCNN(nn.Module):
    """Classifies clouds; O(3)-invariant, including reflections. Not translation-invariant.

    Args:
        classes: number of classes.
        neighbours: k of every graph; a point is its own neighbour. Clouds with fewer points use all.
        width: multiplies all numbers of channels; 1 is the published size (21, 42, 85, 341 vectors).
        pooling: "mean" (published) or "max", of neighbours.
        negative_slope: negative slope of the vector ReLU, in [0, 1]; the invariant head has 0.2.
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
        negative_slope: float = 0.2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_sizes("VNDGCNN", classes, neighbours, width)
        self.neighbours = neighbours
        a, b, c, large = (scaled_vectors(size, width) for size in (64, 128, 256, 1024))
        hidden = [scaled(size, width) for size in (512, 256)]
        self.conv1, self.pool1 = VNBlock(2, a, negative_slope), pool(pooling, a)
        self.conv2, self.pool2 = VNBlock(2 * a, a, negative_slope), pool(pooling, a)
        self.conv3, self.pool3 = VNBlock(2 * a, b, negative_slope), pool(pooling, b)
        self.conv4, self.pool4 = VNBlock(2 * b, c, negative_slope), pool(pooling, c)
        self.conv5 = VNBlock(2 * a + b + c, large, negative_slope, shared_direction=True)
        self.std_feature = VNFrame(2 * large, negative_slope)
        self.linear1 = nn.Linear(12 * large, hidden[0])
        self.bn1 = nn.BatchNorm1d(hidden[0])
        self.dp1 = nn.Dropout(dropout)
        self.linear2 = nn.Linear(hidden[0], hidden[1])
        self.bn2 = nn.BatchNorm1d(hidden[1])
        self.dp2 = nn.Dropout(dropout)
        self.linear3 = nn.Linear(hidden[1], classes)

    def forward(self, points: Tensor, neighbours: Tensor | None = None) -> Tensor:
        """Compute logits (batch, classes).

        Args:
            points: (batch, n, 3), n >= 1, finite; copies of a point count as separate points.
            neighbours: (batch, n, k) long, the first graph, that of the points, if already known
                (`models.neighbours.knn`); the later graphs are those of the features.

        Raises:
            RepresentationError: points or neighbours have a wrong shape.
            NonFiniteError: a coordinate is NaN or infinite.
        """
        check_points(points, "VNDGCNN")
        check_neighbours(neighbours, points, "VNDGCNN")
        x = points.transpose(1, 2).unsqueeze(1).contiguous()  # (batch, 1, 3, n)
        found: list[Tensor] = []
        for conv, pooled in (
            (self.conv1, self.pool1),
            (self.conv2, self.pool2),
            (self.conv3, self.pool3),
            (self.conv4, self.pool4),
        ):
            graph = knn(x.flatten(1, 2), self.neighbours) if found or neighbours is None else neighbours
            x = pooled(conv(edge_features(x, graph)))
            found.append(x)
        x = self.conv5(torch.cat(found, dim=1))  # (batch, 341, 3, n)
        y = self.std_feature(x, x.mean(-1)).flatten(1, 2)  # (batch, 2046, n)
        y = torch.cat([y.amax(-1), y.mean(-1)], dim=1)
        y = self.dp1(nn.functional.leaky_relu(self.bn1(self.linear1(y)), 0.2))
        y = self.dp2(nn.functional.leaky_relu(self.bn2(self.linear2(y)), 0.2))
        return self.linear3(y)
