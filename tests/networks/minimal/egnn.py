"""EGNN in the form of its authors' code: flat graphs, lists of edges, layers that give features and coordinates."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class E_GCL(nn.Module):
    """One layer: messages along edges (row, col), summed at `row`."""

    def __init__(self, channels: int, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.edge_mlp = nn.Sequential(nn.Linear(2 * channels + 1, channels), nn.SiLU())
        self.coord_mlp = nn.Sequential(nn.Linear(channels, 1, bias=False))
        self.node_mlp = nn.Sequential(nn.Linear(2 * channels, channels))

    def forward(
        self, h: Tensor, edge_index: list[Tensor], coord: Tensor, edge_attr: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return (*self.update(h, edge_index, coord), edge_attr)

    def update(self, h: Tensor, edge_index: list[Tensor], coord: Tensor) -> tuple[Tensor, Tensor]:
        row, col = edge_index
        away = coord[row] - coord[col]
        message = self.edge_mlp(torch.cat([h[row], h[col], away.square().sum(dim=1, keepdim=True)], dim=1))
        coord = coord.index_add(0, row, away * self.coord_mlp(message))
        new = self.node_mlp(torch.cat([h, torch.zeros_like(h).index_add(0, row, message)], dim=1))
        return (h + new if self.residual else new), coord


class E_GCL_vel(E_GCL):
    """A layer that is given velocities too."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.coord_mlp_vel = nn.Linear(channels, 1)

    def forward(  # type: ignore[override]
        self, h: Tensor, edge_index: list[Tensor], coord: Tensor, vel: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        new, coord = self.update(h, edge_index, coord)
        return new, coord + self.coord_mlp_vel(h) * vel, None


class EGNN(nn.Module):
    """Two layers, with velocities or without."""

    def __init__(self, inputs: int, channels: int, velocities: bool) -> None:
        super().__init__()
        self.embedding_in = nn.Linear(inputs, channels)
        layer = E_GCL_vel if velocities else E_GCL
        self.gcl_0, self.gcl_1 = layer(channels), layer(channels)

    def forward(
        self, h: Tensor, x: Tensor, edges: list[Tensor], vel: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        h = self.embedding_in(h)
        for layer in (self.gcl_0, self.gcl_1):
            h, x, _ = layer(h, edges, x) if vel is None else layer(h, edges, x, vel)
        return h, x
