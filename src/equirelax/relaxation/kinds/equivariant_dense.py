"""Dense maps that are kept equivariant, as a control that separates relaxation from mere extra capacity.

They have the shape and the strength of other residuals and are removed in the same way, but relax nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equirelax.relaxation.kinds.convolution import Convolution
from equirelax.relaxation.kinds.dense import ConvMap, DenseMap
from equirelax.relaxation.kinds.kind import Init, ResidualKind, initialise, register
from equirelax.settings import NOT_NEGATIVE, within
from equirelax.symmetry import Representation, equivariant_projection


class EquivariantMap(DenseMap):
    """A dense map whose weight is projected onto the equivariant maps in every forward: `P(W) x`.

    Args:
        in_rep, out_rep: Representations of the features.
        feature_axis: See `ResidualMap`.
    """

    def __init__(self, in_rep: Representation, out_rep: Representation, feature_axis: int = -1) -> None:
        super().__init__(in_rep.dim, out_rep.dim, feature_axis)
        self.in_rep, self.out_rep = in_rep, out_rep

    def effective_weight(self) -> Tensor:
        """The orthogonal projection of `weight` onto the equivariant maps, of shape (out_dim, in_dim)."""
        return equivariant_projection(self.weight, self.in_rep, self.out_rep)


class EquivariantConvMap(ConvMap):
    """A dense convolution whose kernel is projected onto the equivariant kernels in every forward."""

    def effective_weight(self) -> Tensor:
        """The orthogonal projection of `weight`."""
        return self.convolution.symmetry.project(self.weight)


@register("equivariant-dense")
@dataclass(frozen=True)
class EquivariantDense(ResidualKind):
    """The control: as many weights as `Dense`, projected onto the equivariant maps in every forward.

    Attributes:
        init: As for `Dense`.
        std: Standard deviation for "normal".
    """

    init: Init = "zeros"
    std: float = within(NOT_NEGATIVE, 1e-4)

    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> EquivariantMap:
        """An `EquivariantMap` of shape (out_rep.dim, in_rep.dim)."""
        map_ = EquivariantMap(in_rep, out_rep, feature_axis)
        initialise([map_.weight], self.init, self.std, generator)
        return map_

    def build_convolution(
        self, in_dim: int, out_dim: int, convolution: Convolution, generator: torch.Generator | None = None
    ) -> EquivariantConvMap:
        """An `EquivariantConvMap`."""
        map_ = EquivariantConvMap(in_dim, out_dim, convolution)
        initialise([map_.weight], self.init, self.std, generator)
        return map_
