"""Gated non-linearity: SiLU on scalars, every higher irrep multiplied by the sigmoid of a scalar of its own."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn

# 1 / sqrt(E[f(z)^2]), z ~ N(0, 1), as e3nn's `normalize2mom` estimates it in float64 from a million samples
SILU_CONSTANT = 1.6791767923989418
SIGMOID_CONSTANT = 1.8467055342154763


class Gate(nn.Module):
    """``e3nn.nn.Gate`` for 0e scalars, constants included.

    (rows, irreps_in.dim) -> (rows, irreps_out.dim), where irreps_in = scalars, one 0e for each gated irrep, gated irreps:

        scalars' = 1.679177 silu(scalars),   gated' = 1.846706 sigmoid(gates) gated
    """

    def __init__(self, irreps_out: str | o3.Irreps) -> None:
        super().__init__()
        self.irreps_out = o3.Irreps(irreps_out)
        self.scalars = sum(mul for mul, ir in self.irreps_out if ir.l == 0)
        self.gated = [(mul, ir.dim) for mul, ir in self.irreps_out if ir.l > 0]
        leading = o3.Irreps([(self.scalars + sum(mul for mul, _ in self.gated), "0e")])
        self.irreps_in = leading + o3.Irreps([m for m in self.irreps_out if m.ir.l > 0])

    def forward(self, x: Tensor) -> Tensor:
        """(rows, irreps_in.dim) -> (rows, irreps_out.dim)."""
        muls = [mul for mul, _ in self.gated]
        scalars, gates, *vectors = x.t().split([self.scalars, sum(muls), *(mul * dim for mul, dim in self.gated)])
        parts = [nn.functional.silu(scalars) * SILU_CONSTANT]
        strengths = (torch.sigmoid(gates) * SIGMOID_CONSTANT).split(muls)
        for strength, vector, (mul, dim) in zip(strengths, vectors, self.gated, strict=True):
            rows = vector.shape[-1]
            parts.append((vector.reshape(mul, dim, rows) * strength[:, None]).reshape(mul * dim, rows))
        return torch.cat(parts).t()
