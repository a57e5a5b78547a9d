"""Perceptrons: the residual of ACE, and of CR on MD17."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from equirelax.relaxation.columns import Columns, dense
from equirelax.relaxation.kinds.kind import (
    Init,
    ResidualKind,
    ResidualMap,
    Slope,
    initialise,
    own_draws,
    register,
    spectral_norm,
    with_biases,
)
from equirelax.settings import DEPTH, FINITE, NOT_NEGATIVE, WIDTH, within
from equirelax.symmetry import Representation

GELU_SLOPE = 1.1290
"""The largest slope of x Phi(x), at sqrt 2, and of its tanh approximation, rounded up."""


class MLPMap(ResidualMap):
    """A multi-layer perceptron with GELU between its layers.

    Args:
        sizes: Sizes of the input, of every hidden layer, and of the output.
        feature_axis: See `ResidualMap`.
    """

    def __init__(self, sizes: list[int], feature_axis: int = -1) -> None:
        super().__init__()
        self.feature_axis = feature_axis
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * mlp(x)` on the feature axis."""
        y = dense(x)
        if self.feature_axis != -1:
            y = y.movedim(self.feature_axis, -1)
        for layer in self.layers[:-1]:
            y = nn.functional.gelu(layer(y))
        last = cast(nn.Linear, self.layers[-1])
        if scale is None:
            y = last(y)
        else:
            y = nn.functional.linear(y, scale * last.weight, scale * last.bias)
        return y if self.feature_axis == -1 else y.movedim(-1, self.feature_axis)

    def slope(self) -> Slope:
        """An upper bound: the product of the layers' largest singular values and of GELU's largest slopes."""
        layers = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        norms = [spectral_norm(layer.weight) for layer in layers]
        constant = math.prod(norms) * GELU_SLOPE ** (len(norms) - 1)
        return with_biases(constant, [layer.bias for layer in layers])


@register("mlp")
@dataclass(frozen=True)
class MLP(ResidualKind):
    """A GELU perceptron from all input features to all output features.

    Attributes:
        layers: Number of linear layers (ACE: 3); ignored if `hidden` is a sequence.
        hidden: Width of the hidden layers, or a sequence with the width of each; None takes the output's.
        init: Initial weights of the last layer ("zeros", "normal", "default"). The others keep PyTorch's
            default, since nothing would train otherwise.
        std: Standard deviation for "normal".
        scale: Factor on the last layer's initial weights and biases (CR on MD17: 0.01).
    """

    layers: int = within(DEPTH, 3)
    hidden: int | tuple[int, ...] | None = within(WIDTH, None)
    init: Init = "default"
    std: float = within(NOT_NEGATIVE, 1e-4)
    scale: float = within(FINITE, 1.0)

    def _sizes(self, in_dim: int, out_dim: int) -> list[int]:
        if isinstance(self.hidden, Sequence):
            return [in_dim, *self.hidden, out_dim]
        return [in_dim] + [self.hidden or out_dim] * (self.layers - 1) + [out_dim]

    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> MLPMap:
        """An `MLPMap` from in_rep.dim to out_rep.dim."""
        with own_draws(generator):
            map_ = MLPMap(self._sizes(in_rep.dim, out_rep.dim), feature_axis)
        for layer in map_.layers[:-1]:
            initialise(list(layer.parameters()), "default", self.std, generator)
        last = list(map_.layers[-1].parameters())
        initialise(last, self.init, self.std, generator)
        with torch.no_grad():
            for parameter in last:
                parameter.mul_(self.scale)
        return map_
