"""Kinds of residuals: a kind holds the user's settings and makes a map, which does the rest.

To add a kind, write one file in this folder with its settings (a `ResidualKind` under `@register`) and its map (a
`ResidualMap`), one import in `__init__`, and one test that subclasses `equirelax.testing.KindConformance`.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from equirelax.errors import EquirelaxError, PlacementError
from equirelax.files import did_you_mean
from equirelax.relaxation.columns import Columns, dense, identity
from equirelax.relaxation.matrices import Matrices
from equirelax.relaxation.spec import spec
from equirelax.relaxation.terms.jacobian import jacobian_terms
from equirelax.relaxation.terms.linear import Moment, second_moment, stacked_terms
from equirelax.relaxation.terms.precision import penalty_dtype
from equirelax.settings import Settings
from equirelax.symmetry import Representation, equivariant_projection, trivial

Init = Literal["zeros", "normal", "default"]
Terms = tuple[Tensor, Tensor]
"""The Lie sum and the norm sum of one residual, without gamma: two tensors of shape ()."""


@dataclass(frozen=True)
class Penalised:
    """A residual's map with the inputs on which it is penalised.

    Args:
        map: The map, in float32 or better.
        inputs: Features on `feature_axis`, detached; empty for a map that needs no inputs.
        feature_axis: See `ResidualMap`.
        in_rep, out_rep: Representations of the map's input and output.
        finite_difference: Whether to approximate the Jacobian-vector products of maps that are not linear.
    """

    map: Any
    inputs: Sequence[Columns]
    feature_axis: int
    in_rep: Representation
    out_rep: Representation
    finite_difference: bool = False


Rule = Callable[[Sequence[Any]], list[Terms]]
"""A function that computes the terms of several residuals, given as `Penalised`, together."""


@dataclass(frozen=True)
class Slope:
    """A Lipschitz constant: `|f(x) - f(y)| <= constant |x - y|`.

    Args:
        constant: The constant; None if none is known.
        reason: Why ACE's bounds (section 4) may not use it; empty if they may.
    """

    constant: float | None
    reason: str = ""


class ResidualMap(nn.Module):
    """The unconstrained map f of a residual `gamma f(x)`.

    The module is called as `map(x, scale)` and returns `scale * f(x)`, with features on the feature axis, or f(x) without a
    scale.

    Penalties also evaluate it, and must not change it. Modules in it that keep running statistics must therefore do so only
    while their attribute `track_running_stats` is true, as torch's batch norm does; its instance norm does not.

    Attributes:
        feature_axis: -1 for x of shape (..., in_dim), -2 for (..., in_dim, points); for a convolution the axis of the
            channels, such as -3 for (..., in_dim, H, W).
        reads_inputs: Whether penalties of the map need its inputs.
        takes_rows: Whether penalties may be estimated from some rows of its inputs.
    """

    feature_axis: int
    reads_inputs: ClassVar[bool] = True
    takes_rows: ClassVar[bool] = True

    def matrices(self) -> dict[str, tuple[Matrices, ...]]:
        """The matrices that the map's own parameters hold, by name, if their shapes do not show them."""
        return {}

    def penalty_rule(self, in_rep: Representation) -> Rule:
        """The rule by which the map's penalties are computed. Residuals with the same rule are computed together.

        The default uses Jacobian-vector products and works for any map.
        """
        return jacobian_sums

    def penalty_entries(self, in_rep: Representation) -> int:
        """An upper bound on the number of entries of the matrices that the exact penalties make."""
        return 0

    def slope(self) -> Slope:
        """The map's Lipschitz constant."""
        return Slope(None, f"no Lipschitz constant is known of {type(self).__name__}")


class LinearMap(ResidualMap, ABC):
    """A map that is given by one matrix (and bias), in any parametrisation. Its penalties are in weight space, and it folds."""

    @abstractmethod
    def effective_weight(self) -> Tensor:
        """The matrix of the map, of shape (out_dim, in_dim), or the dense kernel of a convolution.

        It is differentiable in the parameters.
        """

    def effective_bias(self) -> Tensor | None:
        """The bias of the map, of shape (out_dim,), or None."""
        return None

    def scaled(self, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias times `scale`. They are scaled because they are smaller than the output."""
        weight, bias = self.effective_weight(), self.effective_bias()
        if scale is None:
            return weight, bias
        return scale * weight, None if bias is None else scale * bias

    def projected(self, in_rep: Representation, out_rep: Representation) -> tuple[Tensor, Tensor | None]:
        """The nearest equivariant weight and the nearest invariant bias in the Frobenius norm, differentiably."""
        bias = self.effective_bias()
        if bias is not None:
            bias = equivariant_projection(bias[:, None], trivial(out_rep.group), out_rep)[:, 0]
        return self._nearest(self.effective_weight(), in_rep, out_rep), bias

    def _nearest(self, weight: Tensor, in_rep: Representation, out_rep: Representation) -> Tensor:
        return equivariant_projection(weight, in_rep, out_rep)

    @abstractmethod
    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * (W x + b)`."""

    def penalty_rule(self, in_rep: Representation) -> Rule:
        """The rule in weight space if the group acts linearly on the input, else the default."""
        return self.linear_rule() if in_rep.linear else jacobian_sums

    def linear_rule(self) -> Rule:
        """The rule for inputs on which the group acts linearly."""
        return linear_sums

    def penalty_entries(self, in_rep: Representation) -> int:
        """Count the entries of the Gram matrix."""
        return (in_rep.dim + int(self.effective_bias() is not None)) ** 2 if in_rep.linear else 0

    def slope(self) -> Slope:
        """The largest singular value of the matrix."""
        return with_biases(spectral_norm(self.effective_weight()), [self.effective_bias()])


class ResidualKind(Settings, ABC):
    """The settings of a residual's map.

    Subclasses are frozen dataclasses under `@register("name")` that check themselves.

    Attributes:
        name: The name under which the class is registered.
        for_streams: Whether its maps are steps of residual streams.
    """

    name: ClassVar[str] = ""
    for_streams: ClassVar[bool] = False
    error: ClassVar[type[EquirelaxError]] = PlacementError

    @abstractmethod
    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> ResidualMap:
        """Make the map, initialised, in the default dtype on the CPU."""

    def build_convolution(
        self, in_dim: int, out_dim: int, convolution: Any, generator: torch.Generator | None = None
    ) -> ResidualMap:
        """Make the map for a layer that is a convolution, between channels of feature fields.

        Args:
            in_dim, out_dim: Numbers of channels.
            convolution: A `Convolution`, which says how the layer applies its kernel.

        Raises:
            PlacementError: This kind does not make convolutions, which is the default.
        """
        raise PlacementError(
            f"{type(self).__name__} makes no convolution, and the relaxed layer is one: use Dense, EquivariantDense or "
            "LowRank, or exclude the layer"
        )


_KINDS: dict[str, type[ResidualKind]] = {}
_K = TypeVar("_K", bound="type[ResidualKind]")


def register(name: str) -> Callable[[_K], _K]:
    """Class decorator that makes a kind known by name, also to checkpoints.

    Raises:
        PlacementError: Another class is registered under the name.
    """

    def add(cls: _K) -> _K:
        spec(name)(cls)
        _KINDS[name] = cls
        cls.name = name
        return cls

    return add


def names() -> tuple[str, ...]:
    """The names of the registered kinds, in order of registration."""
    return tuple(_KINDS)


def get(name: str) -> type[ResidualKind]:
    """The kind registered as `name`.

    Raises:
        PlacementError: There is no such kind.
    """
    if name not in _KINDS:
        raise PlacementError(
            f"no kind of residual {name!r}.{did_you_mean(name, names())} There are {', '.join(names())}"
        )
    return _KINDS[name]


def own_draws(generator: torch.Generator | None) -> AbstractContextManager[None]:
    """Keep modules in this block from advancing PyTorch's global generator by initial weights that the kind replaces.

    Without a separate generator the global one advances, since its seed determines the weights that follow.
    """
    return torch.random.fork_rng(devices=[], enabled=generator is not None)


def initialise(
    parameters: Sequence[Tensor], init: Init, std: float, generator: torch.Generator | None
) -> None:
    """Fill a weight (and bias): zeros, normal with deviation `std`, or PyTorch's default, uniform within 1/sqrt(fan-in)."""
    bound = 1 / math.sqrt(max(parameters[0].shape[1:].numel(), 1))
    with torch.no_grad():
        for parameter in parameters:
            if init == "zeros":
                parameter.zero_()
            elif init == "normal":
                parameter.normal_(0, std, generator=generator)
            else:
                parameter.uniform_(-bound, bound, generator=generator)


@contextlib.contextmanager
def untracked(map_: nn.Module) -> Iterator[None]:
    """Keep calls of the map in this block from changing its running statistics."""
    tracking: list[Any] = [part for part in map_.modules() if getattr(part, "track_running_stats", False)]
    try:
        for part in tracking:
            part.track_running_stats = False
        yield
    finally:
        for part in tracking:
            part.track_running_stats = True


def jacobian_sums(calls: Sequence[Penalised]) -> list[Terms]:
    """The terms of any map, by Jacobian-vector products."""
    found = []
    for call in calls:
        dtype = penalty_dtype(next(call.map.parameters()).dtype)
        inputs = [dense(x).to(dtype) for x in call.inputs]
        with untracked(call.map):
            terms = jacobian_terms(
                call.map, inputs, call.feature_axis, call.in_rep, call.out_rep, call.finite_difference
            )
        found.append(terms)
    return found


@dataclass(frozen=True)
class _Stack:
    """The properties that linear maps must share to be computed in one stack."""

    in_rep: Representation
    out_rep: Representation
    bias: bool
    rows: int | None
    dtype: torch.dtype
    device: torch.device


def linear_sums(calls: Sequence[Penalised]) -> list[Terms]:
    """The terms of linear maps in weight space. Those between the same representations are computed in one stack."""
    stacks: dict[_Stack, list[tuple[int, Moment | Tensor]]] = {}
    moments: dict[tuple[Any, ...], Moment | Tensor] = {}
    for index, call in enumerate(calls):
        weight, bias = next(call.map.parameters()), call.map.effective_bias() is not None
        dtype = penalty_dtype(weight.dtype)
        # maps that read the same tensors (a block's feature and direction map) share their moment
        same = (call.feature_axis, dtype, bias, *(identity(x) for x in call.inputs))
        if same not in moments:
            moments[same] = second_moment(list(call.inputs), call.feature_axis, dtype, call.in_rep.dim, bias)
        data = moments[same]
        rows = None if isinstance(data, Moment) else len(data)
        stack = _Stack(call.in_rep, call.out_rep, bias, rows, dtype, weight.device)
        stacks.setdefault(stack, []).append((index, data))
    found: dict[int, Terms] = {}
    for stack, members in stacks.items():
        maps = [calls[index].map for index, _ in members]
        weights = [map_.effective_weight().to(stack.dtype) for map_ in maps]
        # all of them have a bias, or none has
        biases = [map_.effective_bias().to(stack.dtype) for map_ in maps] if stack.bias else None
        data_of_all = [data for _, data in members]
        lie, norm = stacked_terms(weights, biases, data_of_all, stack.in_rep, stack.out_rep)
        found.update((index, (lie[i], norm[i])) for i, (index, _) in enumerate(members))
    return [found[index] for index in range(len(calls))]


def spectral_norm(weight: Tensor) -> float:
    """The largest singular value of a matrix, in float64; 0 for an empty matrix, NaN for one that is not finite."""
    weight = weight.detach().double()
    if not weight.numel() or not bool(torch.isfinite(weight).all()):
        return float("nan") if weight.numel() else 0.0
    # the root of the largest eigenvalue of the smaller Gram matrix, which is as exact as an SVD and many times faster
    scale = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    weight = (weight if weight.shape[0] <= weight.shape[1] else weight.T) / scale
    return float(scale * torch.linalg.eigvalsh(weight @ weight.T)[-1].clamp_min(0).sqrt())


def with_biases(constant: float, biases: Sequence[Tensor | None]) -> Slope:
    """The slope of a map with these biases: ACE's bounds need f(0) = 0."""
    zero = not any(bias is not None and bool(bias.detach().any()) for bias in biases)
    return Slope(constant, "" if zero else "it has a bias, so that f(0) is not 0")
