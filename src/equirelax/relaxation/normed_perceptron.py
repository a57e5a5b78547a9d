"""A perceptron with batch normalisation and spectral norms: ACE's residual on the coordinates of EGNO (arXiv 2505.13631,
experiments, as its code has it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equirelax.relaxation.columns import Columns, dense
from equirelax.relaxation.maps import ResidualKind
from equirelax.relaxation.spec import spec
from equirelax.relaxation.stream_maps import RowNorm, linear
from equirelax.symmetry import Representation


class NormedPerceptronMap(nn.Module):
    """`W_2 norm_2(silu(W_1 norm_1(W_0 x + b_0) + b_1)) + b_2`, W_1 and W_2 divided by their largest singular values.

    Args:
        in_dim, hidden, out_dim: sizes; W_0 is (in_dim, in_dim), W_1 (hidden, in_dim), W_2 (out_dim, hidden).
        iterations: steps of the power iteration of every training-mode call.
        generator: for the initial weights, PyTorch's uniform ones within 1/sqrt(fan-in).
    """

    def __init__(
        self,
        in_dim: int,
        hidden: int,
        out_dim: int,
        iterations: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            linear(in_dim, in_dim, 0, generator),
            RowNorm(in_dim),
            linear(in_dim, hidden, iterations, generator),
            nn.SiLU(),
            RowNorm(hidden),
            linear(hidden, out_dim, iterations, generator),
        )

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * f(x)` for x (..., in_dim)."""
        rows = dense(x)
        y: Tensor = self.layers(rows.reshape(-1, rows.shape[-1]))
        y = y.view(*rows.shape[:-1], -1)
        return y if scale is None else scale * y


@spec("normed-perceptron")
@dataclass(frozen=True)
class NormedPerceptron(ResidualKind):
    """A `NormedPerceptronMap`.

    Args:
        hidden: width of its hidden layer.
        iterations: steps of the power iteration of every training-mode call.
    """

    hidden: int = 128
    iterations: int = 5

    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> NormedPerceptronMap:
        """A `NormedPerceptronMap` from in_rep.dim to out_rep.dim."""
        return NormedPerceptronMap(in_rep.dim, self.hidden, out_rep.dim, self.iterations, generator)

    def count(self, in_dim: int, out_dim: int) -> int:
        """Weights and biases of the three linear maps and of the two normalisations."""
        maps = (in_dim + 1) * in_dim + (in_dim + 1) * self.hidden + (self.hidden + 1) * out_dim
        return maps + 2 * (in_dim + self.hidden)
