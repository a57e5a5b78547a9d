"""Geometric vector perceptrons in the form of gvp-pytorch: pairs (scalars (..., n), vectors (..., n, 3))."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GVP(nn.Module):
    """One perceptron, from and to pairs; to scalars alone where it gives no vectors."""

    def __init__(self, ins: tuple[int, int], outs: tuple[int, int], gated: bool = False) -> None:
        super().__init__()
        (self.si, self.vi), (self.so, self.vo) = ins, outs
        self.h_dim = max(self.vi, self.vo)
        self.wh = nn.Linear(self.vi, self.h_dim, bias=False)
        self.ws = nn.Linear(self.h_dim + self.si, self.so)
        if self.vo:
            self.wv = nn.Linear(self.h_dim, self.vo, bias=False)
        self.wsv = nn.Linear(self.so, self.vo) if gated else None

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden = self.wh(v.transpose(-1, -2))
        s = self.ws(torch.cat([s, (hidden.square().sum(dim=-2) + 1e-8).sqrt()], dim=-1))
        if not self.vo:
            return s, None
        v = self.wv(hidden).transpose(-1, -2)
        if self.wsv is not None:
            gates = self.wsv(torch.sigmoid(s))[..., None]
        else:
            gates = (v.square().sum(dim=-1, keepdim=True) + 1e-8).sqrt()
        return torch.relu(s), v * torch.sigmoid(gates)


class GVPModel(nn.Module):
    """Messages between all pairs of nodes, and a readout of one number."""

    def __init__(self, scalars: int, vectors: int) -> None:
        super().__init__()
        self.message = nn.Sequential(
            GVP((2 * scalars + 1, 2 * vectors + 1), (scalars, vectors)),
            GVP((scalars, vectors), (scalars, vectors), gated=True),
        )
        self.readout = GVP((scalars, vectors), (1, 0))

    def forward(self, s: Tensor, v: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        count = len(s)
        pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count))
        i, j = pairs[pairs[:, 0] != pairs[:, 1]].T
        edges = (pos[j] - pos[i])[:, None]
        length = torch.linalg.vector_norm(edges, dim=-1)
        x, y = torch.cat([s[i], s[j], length], dim=-1), torch.cat([v[i], v[j], edges], dim=-2)
        for layer in self.message:
            x, y = layer(x, y)
        s, v = s + torch.zeros_like(s).index_add(0, i, x), v + torch.zeros_like(v).index_add(0, i, y)
        return self.readout(s, v)[0].sum(), v
