"""A perceptron with batch normalisation and spectral norms: ACE's residual on the coordinates of EGNO.

It is that of the experiments in arXiv 2505.13631, as in their code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError
from equirelax.relaxation.columns import Columns, dense
from equirelax.relaxation.kinds.kind import ResidualKind, ResidualMap, register
from equirelax.relaxation.kinds.stream import RowNorm, linear
from equirelax.settings import COUNT, WIDTH, within
from equirelax.symmetry import Representation


class NormedPerceptronMap(ResidualMap):
    """`W_2 norm_2(silu(W_1 norm_1(W_0 x + b_0) + b_1)) + b_2`, with W_1 and W_2 divided by their largest singular values.

    Args:
        in_dim, hidden, out_dim: sizes; W_0 is (in_dim, in_dim), W_1 (hidden, in_dim), W_2 (out_dim, hidden).
        iterations: steps of the power iteration in every training-mode call.
        generator: Random number generator for the initial weights, which are PyTorch's, uniform within 1/sqrt(fan-in).
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
        self.feature_axis = -1
        self.layers = nn.Sequential(
            linear(in_dim, in_dim, 0, generator),
            RowNorm(in_dim),
            linear(in_dim, hidden, iterations, generator),
            nn.SiLU(),
            RowNorm(hidden),
            linear(hidden, out_dim, iterations, generator),
        )

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * f(x)` for x (..., in_dim), in the dtype of the weights even under autocast, as statistics require."""
        features = dense(x)
        rows = features.reshape(-1, features.shape[-1]).to(next(self.parameters()).dtype)
        with torch.autocast(rows.device.type, enabled=False):
            y: Tensor = self.layers(rows)
        y = y.view(*features.shape[:-1], y.shape[-1])
        return y if scale is None else scale * y


@register("normed-perceptron")
@dataclass(frozen=True)
class NormedPerceptron(ResidualKind):
    """A perceptron of three linear maps, two batch normalisations and spectral norms; see `NormedPerceptronMap`.

    Attributes:
        hidden: Width of its hidden layer.
        iterations: Steps of the power iteration in every training-mode call.
    """

    hidden: int = within(WIDTH, 128)
    iterations: int = within(COUNT, 5)

    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> NormedPerceptronMap:
        """A `NormedPerceptronMap` from in_rep.dim to out_rep.dim.

        Raises:
            PlacementError: The features are not on the last axis.
        """
        if feature_axis != -1:
            raise PlacementError(
                f"NormedPerceptron reads features on the last axis, and this layer's are on axis {feature_axis}: use MLP, or "
                "exclude the layer"
            )
        return NormedPerceptronMap(in_rep.dim, self.hidden, out_rep.dim, self.iterations, generator)
