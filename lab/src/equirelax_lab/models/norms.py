"""Layer norm and instance norm of steerable features, and the non-linearity of their norms."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax_lab.models.fast.join import join
from equirelax_lab.models.stack import mean_rows

SMALL = 1e-4  # added to squared norms, so that all derivatives are finite where features are 0


class EquivariantLayerNorm(nn.Module):
    """Divides every irrep's channels by their root mean square over channels and components, and scales each channel.

    The mean over the channels of scalars (0e) is subtracted first, and they get a bias, as in an ordinary layer norm (Liao
    and Smidt, arXiv 2206.11990, section 4.1). eps is added to the mean square, so that all derivatives are finite where
    features are 0.

    Args:
        irreps: irreps of the features.
        eps: added to mean squares, above 0.
    """

    def __init__(self, irreps: str | o3.Irreps, eps: float = 1e-5) -> None:
        super().__init__()
        self.irreps, self.eps = o3.Irreps(irreps), eps
        self.scalar = [ir == o3.Irrep("0e") for _, ir in self.irreps]
        self.slots = [(mul, ir.dim) for mul, ir in self.irreps]
        self.weight = nn.Parameter(torch.ones(self.irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(self.irreps.count("0e")))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, irreps.dim) -> (rows, irreps.dim)."""
        rows = x.shape[0]
        parts = x.t().split_with_sizes([mul * dim for mul, dim in self.slots])
        weights = self.weight.split_with_sizes([mul for mul, _ in self.slots])
        biases = list(
            self.bias.split_with_sizes(
                [mul for (mul, _), s in zip(self.slots, self.scalar, strict=True) if s]
            )
        )
        outs = []
        for part, weight, (mul, dim), scalar in zip(parts, weights, self.slots, self.scalar, strict=True):
            if scalar:
                part = part - part.mean(0)
            scale = (part.square().mean(0) + self.eps).rsqrt()
            scaled = part.reshape(mul, dim, rows) * (weight[:, None] * scale)[:, None]
            outs.append(
                (scaled + biases.pop(0)[:, None, None] if scalar else scaled).reshape(mul * dim, rows)
            )
        return join(outs).t()


class EquivariantInstanceNorm(nn.Module):
    """Divides every channel by its root mean square over components and over the nodes of a graph, and scales it.

    The mean of scalars (0e) over the graph's nodes is subtracted first, and they get a bias (Brandstetter et al., arXiv
    2110.02905, code). eps is added to the mean square.

    Args:
        irreps: irreps of the features.
        eps: added to mean squares, above 0.
    """

    def __init__(self, irreps: str | o3.Irreps, eps: float = 1e-5) -> None:
        super().__init__()
        self.irreps, self.eps = o3.Irreps(irreps), eps
        self.weight = nn.Parameter(torch.ones(self.irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(self.irreps.count("0e")))

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        """(rows, irreps.dim), graph (rows,) long, numbers below the number of rows -> (rows, irreps.dim)."""
        rows = x.shape[0]
        outs, weight, bias = [], 0, 0
        for part, (mul, ir) in zip(
            x.t().split_with_sizes([mul * ir.dim for mul, ir in self.irreps]), self.irreps, strict=True
        ):
            scalar = ir == o3.Irrep("0e")
            if scalar:
                part = part - mean_rows(part, graph, rows).index_select(1, graph)
            channels = part.reshape(mul, ir.dim, rows)
            squares = mean_rows(channels.square().mean(1), graph, rows).index_select(1, graph)
            scaled = (
                channels * (self.weight[weight : weight + mul, None] * (squares + self.eps).rsqrt())[:, None]
            )
            weight += mul
            if scalar:
                scaled = scaled + self.bias[bias : bias + mul, None, None]
                bias += mul
            outs.append(scaled.reshape(mul * ir.dim, rows))
        return join(outs).t()


class NormActivation(nn.Module):
    """Applies layer norm, then SiLU to scalars, and multiplies every other channel by SiLU(w |x| + b) of its own norm.

    Thomas et al., "Tensor field networks" (arXiv 1802.08219), section 4.1.3; with layer norm first as in Fuchs et al.
    (arXiv 2006.10503). |x| is the root mean square over the 2l+1 components.

    Args:
        irreps: of the features.
    """

    def __init__(self, irreps: str | o3.Irreps) -> None:
        super().__init__()
        self.irreps = o3.Irreps(irreps)
        self.norm = EquivariantLayerNorm(self.irreps)
        self.slots = [(mul, ir.dim, ir == o3.Irrep("0e")) for mul, ir in self.irreps]
        gated = sum(mul for mul, _, scalar in self.slots if not scalar)
        self.weight = nn.Parameter(torch.ones(gated, 1))
        self.bias = nn.Parameter(torch.zeros(gated, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, irreps.dim) -> (rows, irreps.dim)."""
        parts = self.norm(x).t().split_with_sizes([mul * dim for mul, dim, _ in self.slots])
        muls = [mul for mul, _, scalar in self.slots if not scalar]
        weights, biases = iter(self.weight.split_with_sizes(muls)), iter(self.bias.split_with_sizes(muls))
        outs = []
        for part, (mul, _, scalar) in zip(parts, self.slots, strict=True):
            if scalar:
                outs.append(nn.functional.silu(part))
                continue
            vectors = part.unflatten(0, (mul, -1))
            norms = (vectors.square().mean(1) + SMALL).sqrt()
            strengths = nn.functional.silu(next(weights) * norms + next(biases))
            outs.append((vectors * strengths[:, None]).flatten(0, 1))
        return join(outs).t()
