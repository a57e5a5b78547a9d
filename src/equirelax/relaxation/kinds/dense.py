"""Dense linear maps from all input features to all output features: the residual of CR (section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from equirelax.relaxation.columns import Columns, column_product, dense, row_product
from equirelax.relaxation.kinds.convolution import Convolution, KernelMap
from equirelax.relaxation.kinds.kind import Init, LinearMap, ResidualKind, initialise, register
from equirelax.settings import NOT_NEGATIVE, within
from equirelax.symmetry import Representation


class DenseMap(LinearMap):
    """`W x (+ b)` on the feature axis.

    Args:
        in_dim, out_dim: sizes. `weight` has shape (out_dim, in_dim).
        feature_axis: -1 for x of shape (..., in_dim), -2 for (..., in_dim, points).
        bias: add a bias of shape (out_dim,).
    """

    def __init__(self, in_dim: int, out_dim: int, feature_axis: int = -1, bias: bool = False) -> None:
        super().__init__()
        self.feature_axis = feature_axis
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim)) if bias else None

    def effective_weight(self) -> Tensor:
        """The parameter `weight`."""
        return self.weight

    def effective_bias(self) -> Tensor | None:
        """The parameter `bias`."""
        return self.bias

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * (W x + b)`."""
        weight, bias = self.scaled(scale)
        if self.feature_axis == -1:
            return row_product(weight, dense(x), bias)
        y = column_product(weight, x)
        return y if bias is None else y + bias[:, None]


class ConvMap(KernelMap):
    """A dense convolution with the relaxed layer's stride, padding and so on.

    Args:
        in_dim, out_dim: channels.
        convolution: kernel size, stride, padding and so on. `weight` has the shape of `convolution.weight_shape`.
        bias: add a bias of shape (out_dim,).
    """

    def __init__(self, in_dim: int, out_dim: int, convolution: Convolution, bias: bool = False) -> None:
        super().__init__(convolution)
        self.weight = nn.Parameter(torch.empty(convolution.weight_shape(in_dim, out_dim)))
        self.bias = nn.Parameter(torch.zeros(out_dim)) if bias else None

    def effective_weight(self) -> Tensor:
        """The parameter `weight`."""
        return self.weight

    def effective_bias(self) -> Tensor | None:
        """The parameter `bias`."""
        return self.bias

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * (W * x + b)`."""
        weight, bias = self.scaled(scale)
        return self.convolution(dense(x), weight, bias)


_M = TypeVar("_M", DenseMap, ConvMap)


@register("dense")
@dataclass(frozen=True)
class Dense(ResidualKind):
    """One dense linear map from all input features to all output features.

    Attributes:
        init: Initial weights: "zeros" (the relaxed model starts as the strict one), "normal" with deviation `std` (CR's
            N-body: 1e-4), or "default" (uniform within 1/sqrt(fan-in), as torch.nn.Linear).
        std: Standard deviation for "normal".
        bias: Whether it has a bias, which is part of the map in the Lie derivative.
    """

    init: Init = "zeros"
    std: float = within(NOT_NEGATIVE, 1e-4)
    bias: bool = False

    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> DenseMap:
        """A `DenseMap` of shape (out_rep.dim, in_rep.dim)."""
        return self._filled(DenseMap(in_rep.dim, out_rep.dim, feature_axis, self.bias), generator)

    def build_convolution(
        self, in_dim: int, out_dim: int, convolution: Convolution, generator: torch.Generator | None = None
    ) -> ConvMap:
        """A `ConvMap`."""
        return self._filled(ConvMap(in_dim, out_dim, convolution, self.bias), generator)

    def _filled(self, map_: _M, generator: torch.Generator | None) -> _M:
        parameters = [p for p in (map_.weight, map_.bias) if p is not None]
        initialise(parameters, self.init, self.std, generator)
        return map_
