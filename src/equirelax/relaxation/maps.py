"""The unconstrained map of a residual: dense, of low rank, a small MLP, or (a control) dense but kept equivariant.

Features lie on one axis: `-1` for rows `(..., dim)`, `-2` for columns `(..., dim, points)`;
the second form serves layers whose features stand before their points, without a transpose. Those of
convolutions are in `conv_maps`.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError
from equirelax.relaxation.columns import Columns, column_product, dense, row_product
from equirelax.relaxation.conv_maps import ConvMap, EquivariantConvMap, LowRankConvMap
from equirelax.relaxation.kernels import Convolution
from equirelax.relaxation.linear_map import LinearMap
from equirelax.relaxation.spec import spec
from equirelax.symmetry import Representation, equivariant_projection

INITS = ("zeros", "normal", "default")


def in_backward() -> bool:
    """Whether autograd is running: a forward then is the recomputation of gradient checkpointing."""
    # Under torch.compile checkpointed regions are recomputed inside the compiled
    # backward, where no Python runs.
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1


class DenseMap(LinearMap):
    """`W x (+ b)` on the feature axis: the residual of CR (section 4).

    Args:
        in_dim, out_dim: sizes; `weight` has shape (out_dim, in_dim).
        feature_axis: -1 for x of shape (..., in_dim), -2 for (..., in_dim, points).
        bias: add a bias of shape (out_dim,).
    """

    def __init__(self, in_dim: int, out_dim: int, feature_axis: int = -1, bias: bool = False) -> None:
        super().__init__()
        self.feature_axis = feature_axis
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim)) if bias else None

    def effective_weight(self) -> Tensor:
        """The matrix that is applied, of shape (out_dim, in_dim)."""
        return self.weight

    def effective_bias(self) -> Tensor | None:
        """The bias that is added, of shape (out_dim,), or None."""
        return self.bias

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * (W x + b)`; the scale goes into W, which is smaller than the output."""
        weight, bias = self.effective_weight(), self.effective_bias()
        if scale is not None:
            weight = scale * weight
            bias = None if bias is None else scale * bias
        if self.feature_axis == -1:
            return row_product(weight, dense(x), bias)
        y = column_product(weight, x)
        return y if bias is None else y + bias[:, None]


class EquivariantMap(DenseMap):
    """A dense map whose weight is projected onto the equivariant maps in every forward: `P(W) x`.

    It has the shape, the strength and the removal of a relaxation, but relaxes nothing:
    the control that separates relaxation from mere extra capacity.
    """

    def __init__(self, in_rep: Representation, out_rep: Representation, feature_axis: int = -1) -> None:
        super().__init__(in_rep.dim, out_rep.dim, feature_axis)
        self.in_rep, self.out_rep = in_rep, out_rep

    def effective_weight(self) -> Tensor:
        """The orthogonal projection of `weight` onto the equivariant maps, of shape (out_dim, in_dim)."""
        return equivariant_projection(self.weight, self.in_rep, self.out_rep)


class LowRankMap(LinearMap):
    """`U (V x)` on the feature axis: two thin products, U V is never formed to apply it.

    Args:
        in_dim, out_dim: sizes.
        rank: r; `up` is U, of shape (out_dim, r), and `down` is V, of shape (r, in_dim).
        feature_axis: as for `DenseMap`.
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, feature_axis: int = -1) -> None:
        super().__init__()
        self.feature_axis = feature_axis
        self.up = nn.Parameter(torch.empty(out_dim, rank))
        self.down = nn.Parameter(torch.empty(rank, in_dim))

    def effective_weight(self) -> Tensor:
        """U V, of shape (out_dim, in_dim)."""
        return self.up @ self.down

    def effective_bias(self) -> None:
        """None."""
        return None

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * U (V x)`; the scale goes into U."""
        up = self.up if scale is None else scale * self.up
        if self.feature_axis == -1:
            return row_product(up, row_product(self.down, dense(x)))
        return column_product(up, column_product(self.down, x))


class MLPMap(nn.Module):
    """A multi-layer perceptron with GELU between its layers: the residual of ACE (and of CR on MD17).

    Args:
        sizes: dim of the input, of every hidden layer, and of the output.
        feature_axis: as for `DenseMap`.
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


_M = TypeVar("_M", DenseMap, ConvMap)


class ResidualKind(ABC):
    """What a residual is made of. Subclasses are frozen dataclasses registered with `@spec`."""

    @abstractmethod
    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> nn.Module:
        """The map, initialised, in the default dtype on the CPU; called as `map(x, scale)`."""

    def build_convolution(
        self, in_dim: int, out_dim: int, convolution: Convolution, generator: torch.Generator | None = None
    ) -> nn.Module:
        """The same for a layer that is a convolution, over channels of feature fields.

        Raises:
            PlacementError: this kind cannot be a convolution, which is the default.
        """
        raise PlacementError(
            f"{type(self).__name__} makes no convolution, which the relaxed layer is: use Dense, EquivariantDense or "
            "LowRank, or exclude the layer"
        )

    @abstractmethod
    def count(self, in_dim: int, out_dim: int) -> int:
        """Number of parameters that `build` will make; of a convolution in_dim counts every offset of the kernel."""

    def count_between(self, in_rep: Representation, out_rep: Representation) -> int:
        """The same for a residual between two representations, whose sizes are all that matters by default."""
        return self.count(in_rep.dim, out_rep.dim)


def initialise(
    parameters: Sequence[Tensor], init: str, std: float, generator: torch.Generator | None, where: str
) -> None:
    """Fill a weight (and bias) by one of `INITS`; "default" is PyTorch's uniform in +-1/sqrt(fan-in)."""
    if init not in INITS:
        raise PlacementError(f"{where}: init is {init!r}; expected one of {', '.join(INITS)}")
    bound = 1 / math.sqrt(max(parameters[0].shape[1:].numel(), 1))
    with torch.no_grad():
        for parameter in parameters:
            if init == "zeros":
                parameter.zero_()
            elif init == "normal":
                parameter.normal_(0, std, generator=generator)
            else:
                parameter.uniform_(-bound, bound, generator=generator)


@spec("dense")
@dataclass(frozen=True)
class Dense(ResidualKind):
    """One dense linear map from all input features to all output features.

    Args:
        init: "zeros" (the relaxed model starts as the strict one), "normal" with deviation `std` (CR's
            N-body: 1e-4), or "default" (uniform within 1/sqrt(fan-in), as torch.nn.Linear).
        std: standard deviation for "normal".
        bias: with a bias; it is part of the map that the Lie derivative sees.
    """

    init: str = "zeros"
    std: float = 1e-4
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
        initialise(parameters, self.init, self.std, generator, "Dense")
        return map_

    def count(self, in_dim: int, out_dim: int) -> int:
        """out_dim (in_dim + 1 with a bias)."""
        return out_dim * (in_dim + int(self.bias))


@spec("equivariant-dense")
@dataclass(frozen=True)
class EquivariantDense(ResidualKind):
    """The control: as many weights as `Dense`, projected onto the equivariant maps (see `EquivariantMap`)."""

    init: str = "zeros"
    std: float = 1e-4

    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> EquivariantMap:
        """An `EquivariantMap` of shape (out_rep.dim, in_rep.dim)."""
        map_ = EquivariantMap(in_rep, out_rep, feature_axis)
        initialise([map_.weight], self.init, self.std, generator, "EquivariantDense")
        return map_

    def build_convolution(
        self, in_dim: int, out_dim: int, convolution: Convolution, generator: torch.Generator | None = None
    ) -> EquivariantConvMap:
        """An `EquivariantConvMap`."""
        map_ = EquivariantConvMap(in_dim, out_dim, convolution)
        initialise([map_.weight], self.init, self.std, generator, "EquivariantDense")
        return map_

    def count(self, in_dim: int, out_dim: int) -> int:
        """out_dim in_dim."""
        return out_dim * in_dim


@spec("low-rank")
@dataclass(frozen=True)
class LowRank(ResidualKind):
    """A linear map from all input features to all output features, of at most a given rank: `U (V x)`.

    On VN-PointNet dense residuals take three times the arithmetic of the network that they relax, those of rank 8 a
    tenth of it. With U = 0 only U has a gradient at the first step, V from the second on.

    Args:
        rank: r, at least 1. Layers differ in size: where min(in_dim, out_dim) is smaller, that is taken instead,
            which leaves nothing out.
        init: of U: "zeros" (the relaxed model starts as the strict one), "normal" with deviation `std`, or
            "default" (uniform within 1/sqrt(r)). V is always uniform within 1/sqrt(in_dim), or nothing would train.
        std: standard deviation for "normal".
    """

    rank: int = 8
    init: str = "zeros"
    std: float = 1e-4

    def _rank(self, in_dim: int, out_dim: int) -> int:
        if self.rank < 1:
            raise PlacementError(f"LowRank: rank is {self.rank}; expected at least 1")
        return min(self.rank, in_dim, out_dim)

    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> LowRankMap:
        """A `LowRankMap` from in_rep.dim to out_rep.dim.

        Raises:
            PlacementError: the rank is below 1, or the init is unknown.
        """
        map_ = LowRankMap(in_rep.dim, out_rep.dim, self._rank(in_rep.dim, out_rep.dim), feature_axis)
        initialise([map_.down], "default", self.std, generator, "LowRank")
        initialise([map_.up], self.init, self.std, generator, "LowRank")
        return map_

    def build_convolution(
        self, in_dim: int, out_dim: int, convolution: Convolution, generator: torch.Generator | None = None
    ) -> LowRankConvMap:
        """A `LowRankConvMap`.

        Raises:
            PlacementError: the rank is below 1, the init is unknown, or the convolution is transposed.
        """
        if convolution.transposed:
            raise PlacementError("LowRank makes no transposed convolution: use Dense, or exclude the layer")
        rank = self._rank(in_dim * convolution.pixels, out_dim)
        map_ = LowRankConvMap(in_dim, out_dim, rank, convolution)
        initialise([map_.down], "default", self.std, generator, "LowRank")
        initialise([map_.up], self.init, self.std, generator, "LowRank")
        return map_

    def count(self, in_dim: int, out_dim: int) -> int:
        """r (in_dim + out_dim), r the rank that such a layer gets."""
        return self._rank(in_dim, out_dim) * (in_dim + out_dim)


@spec("mlp")
@dataclass(frozen=True)
class MLP(ResidualKind):
    """A GELU perceptron from all input features to all output features.

    Args:
        layers: number of linear layers (ACE: 3); not read where `hidden` is a sequence.
        hidden: width of the hidden layers, or a sequence of the width of each; None takes the output's.
        init: of the last layer ("zeros", "normal", "default"); the others keep PyTorch's
            default, or nothing would train.
        std: standard deviation for "normal".
        scale: factor on the last layer's initial weights and biases (CR on MD17: 0.01).
    """

    layers: int = 3
    hidden: int | Sequence[int] | None = None
    init: str = "default"
    std: float = 1e-4
    scale: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.hidden, Sequence):
            object.__setattr__(self, "hidden", tuple(self.hidden))  # settings are compared and hashed

    def _sizes(self, in_dim: int, out_dim: int) -> list[int]:
        if isinstance(self.hidden, Sequence):
            if any(type(width) is not int or width < 1 for width in self.hidden):
                raise PlacementError(f"MLP: hidden is {self.hidden}; expected widths of at least 1")
            return [in_dim, *self.hidden, out_dim]
        if self.layers < 1:
            raise PlacementError(f"MLP: layers is {self.layers}; expected at least 1")
        return [in_dim] + [self.hidden or out_dim] * (self.layers - 1) + [out_dim]

    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> MLPMap:
        """An `MLPMap` from in_rep.dim to out_rep.dim."""
        map_ = MLPMap(self._sizes(in_rep.dim, out_rep.dim), feature_axis)
        for layer in map_.layers[:-1]:
            initialise(list(layer.parameters()), "default", self.std, generator, "MLP")
        last = list(map_.layers[-1].parameters())
        initialise(last, self.init, self.std, generator, "MLP")
        with torch.no_grad():
            for parameter in last:
                parameter.mul_(self.scale)
        return map_

    def count(self, in_dim: int, out_dim: int) -> int:
        """Weights and biases of all layers."""
        return sum((a + 1) * b for a, b in itertools.pairwise(self._sizes(in_dim, out_dim)))
