"""Non-linearity of the norms of steerable features."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax_lab.models.equivariant_norm import EquivariantLayerNorm
from equirelax_lab.models.fast.join import join

SMALL = 1e-4  # added to squared norms, so that all derivatives are finite where features are 0


class NormActivation(nn.Module):
    """Layer norm, then SiLU of scalars; every other channel is multiplied by SiLU(w |x| + b) of its own norm.

    Thomas et al., "Tensor field networks" (arXiv 1802.08219), section 4.1.3; with the norm before it as Fuchs et al. have it
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
