"""Vector neurons in the form of the authors' code: features (batch, channels, 3, ...), maps called on `x.transpose(1, -1)`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def turned(x: Tensor) -> Tensor:
    """Channels, which stand on axis 1, on the last axis; and back."""
    return x.transpose(1, -1)


class VNLinear(nn.Module):
    """One map."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.map_to_feat = nn.Linear(ins, outs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return turned(self.map_to_feat(turned(x)))


class VNLinearLeakyReLU(nn.Module):
    """A map, and a nonlinearity along learnt directions."""

    def __init__(self, ins: int, outs: int, share_nonlinearity: bool = False) -> None:
        super().__init__()
        self.map_to_feat = nn.Linear(ins, outs, bias=False)
        self.map_to_dir = nn.Linear(ins, 1 if share_nonlinearity else outs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        feature, direction = turned(self.map_to_feat(turned(x))), turned(self.map_to_dir(turned(x)))
        along = (feature * direction).sum(dim=2, keepdim=True)
        behind = along.clamp(max=0) / (direction.square().sum(dim=2, keepdim=True) + 1e-6)
        return feature - 0.8 * behind * direction


class VNMaxPool(nn.Module):
    """Of the last axis the entry that lies furthest along a learnt direction."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.map_to_dir = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        best = (x * turned(self.map_to_dir(turned(x)))).sum(dim=2, keepdim=True).argmax(dim=-1, keepdim=True)
        return x.gather(-1, best.expand_as(x[..., :1])).squeeze(-1)


class VNStdFeature(nn.Module):
    """Scalar products with a learnt frame, of features (batch, channels, 3, points)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.vn1 = VNLinearLeakyReLU(channels, channels // 2)
        self.vn_lin = nn.Linear(channels // 2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        frame = turned(self.vn_lin(turned(self.vn1(x))))
        return torch.einsum("bixn,bjxn->bijn", x, frame)


class PointNet(nn.Module):
    """From points (batch, 3, points) to invariants, and one vector for each batch.

    Maps see (batch, neighbours, 3, points, channels), (batch, points, 3, channels) and (batch, 3, channels).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_pos = VNLinearLeakyReLU(2, channels)
        self.pool = VNMaxPool(channels)
        self.conv1 = VNLinear(channels, channels)
        self.std_feature = VNStdFeature(channels)
        self.fc = VNLinearLeakyReLU(channels, channels, share_nonlinearity=True)
        self.last = VNLinear(channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        between = x[..., None] - x[:, :, None]  # every other point seen from every point
        x = self.conv_pos(torch.stack([between, x[..., None].expand_as(between)], dim=1))
        x = self.conv1(self.pool(x))
        return self.std_feature(x).mean(dim=-1), self.last(self.fc(x.mean(dim=-1))).squeeze(1)
