"""DGCNN: edge convolutions over graphs of nearest neighbours in feature space. A baseline that is not equivariant.

Wang et al.: "Dynamic graph CNN for learning on point clouds", ACM TOG 2019 (arXiv 1801.07829), section 4.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from equirelax_lab.models.neighbours import check_neighbours, check_points, knn
from equirelax_lab.models.vn_blocks import check_sizes, scaled


class EdgeConv(nn.Module):
    """`max_j LeakyReLU(norm(W [x_j - x_i, x_i]))` over the neighbours j of every point i.

    Args:
        in_channels, out_channels: numbers of features.
        negative_slope: of the ReLU.

    Attributes:
        weight: (out_channels, 2 in_channels).
    """

    def __init__(self, in_channels: int, out_channels: int, negative_slope: float = 0.2) -> None:
        super().__init__()
        bound = 1 / math.sqrt(2 * in_channels)
        self.weight = nn.Parameter(torch.empty(out_channels, 2 * in_channels).uniform_(-bound, bound))
        self.norm = nn.BatchNorm1d(out_channels)
        self.activation = nn.LeakyReLU(negative_slope)

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """x (batch, n, C), neighbours (batch, n, k) long -> (batch, n, C')."""
        batch, n, k = neighbours.shape
        # W [x_j - x_i, x_i] = N x_j + (M - N) x_i: two products per point instead of one per edge
        near, centre = self.weight.chunk(2, dim=1)
        u = (x @ near.T).flatten(0, 1)  # (batch n, C')
        v = x @ (centre - near).T
        offsets = torch.arange(batch, device=x.device).view(-1, 1, 1) * n
        edges = u.index_select(0, (neighbours + offsets).flatten()).view(batch, n, k, -1) + v.unsqueeze(2)
        edges = self.norm(edges.flatten(0, 2))
        return self.activation(edges).view(batch, n, k, -1).amax(2)


class DGCNN(nn.Module):
    """Classifies point clouds as published: four edge convolutions (64, 64, 128, 256), all concatenated and mapped to 1024,
    maximum and mean over the points, then 512-256-classes.

    Args:
        classes: number of classes.
        neighbours: k of every graph; a point is its own neighbour. Clouds with fewer points use all.
        width: multiplies all numbers of channels; 1 is the published size.
        negative_slope: of every ReLU.
        dropout: in the head.

    Raises:
        RepresentationError: a size is out of its range.
    """

    def __init__(
        self,
        classes: int = 40,
        neighbours: int = 20,
        width: float = 1.0,
        negative_slope: float = 0.2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_sizes("DGCNN", classes, neighbours, width)
        self.neighbours = neighbours
        sizes = [3, *(scaled(size, width) for size in (64, 64, 128, 256))]
        self.convs = nn.ModuleList(EdgeConv(a, b, negative_slope) for a, b in itertools.pairwise(sizes))
        large, first, second = (scaled(size, width) for size in (1024, 512, 256))
        self.mix = nn.Linear(sum(sizes[1:]), large, bias=False)
        self.norm = nn.BatchNorm1d(large)
        self.activation = nn.LeakyReLU(negative_slope)
        self.head = nn.Sequential(
            nn.Linear(2 * large, first, bias=False),
            nn.BatchNorm1d(first),
            nn.LeakyReLU(negative_slope),
            nn.Dropout(dropout),
            nn.Linear(first, second),
            nn.BatchNorm1d(second),
            nn.LeakyReLU(negative_slope),
            nn.Dropout(dropout),
            nn.Linear(second, classes),
        )

    def forward(self, points: Tensor, neighbours: Tensor | None = None) -> Tensor:
        """Compute logits (batch, classes).

        Args:
            points: (batch, n, 3), n >= 1, finite. In training a batch has two clouds or more (batch norm).
            neighbours: (batch, n, k) long, the first graph, that of the points, if already known
                (`models.neighbours.knn`); the later graphs are those of the features.

        Raises:
            RepresentationError: points or neighbours have a wrong shape.
            NonFiniteError: a coordinate is NaN or infinite.
        """
        check_points(points, "DGCNN")
        check_neighbours(neighbours, points, "DGCNN")
        x = points
        found: list[Tensor] = []
        for conv in self.convs:
            graph = knn(x.transpose(1, 2), self.neighbours) if found or neighbours is None else neighbours
            x = conv(x, graph)
            found.append(x)
        rows = torch.cat(found, dim=-1).flatten(0, 1)  # (batch n, 512)
        y = self.activation(self.norm(self.mix(rows))).view(*points.shape[:2], -1)
        return self.head(torch.cat([y.amax(1), y.mean(1)], dim=1))
