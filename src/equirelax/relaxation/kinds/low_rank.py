"""Low-rank linear maps f(x) = U V x: two thin products, with exact penalties at the same cost.

Both sums of CR's regulariser depend on the inputs X = [x_1 .. x_N] only through Y = P X, with
P = [V; V drho_in(A_1); ..; V rho_in(g_1); ..] of m = r (1 + generators) rows:

    sum_n || drho_out(A) U V x_n - U V drho_in(A) x_n ||^2  =  || F Y ||^2,     F depends only on U

With orthonormal columns Q that span the rows of Y, || F Y ||^2 = || F P (X Q) ||^2. With Q held fixed the
gradients agree too: 2 F^T F Y Q Q^T X^T = 2 F^T F Y X^T. So the m columns X Q can replace all N inputs, and no Gram matrix
of the inputs (in_dim, in_dim) is made. Second derivatives do not agree, because dY leaves the span of Q: they are computed from
all inputs, in weight space. Nothing is squared before the difference is taken, so the Lie sum of an equivariant U V is the
square of a rounding error, as in `terms.linear`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError
from equirelax.relaxation.columns import Columns, SharedColumns, column_product, dense, row_product
from equirelax.relaxation.kinds.convolution import Convolution, KernelMap
from equirelax.relaxation.kinds.kind import (
    Init,
    LinearMap,
    Penalised,
    ResidualKind,
    Rule,
    Terms,
    initialise,
    register,
)
from equirelax.relaxation.surroundings import in_transform
from equirelax.relaxation.terms.linear import linear_images, linear_terms
from equirelax.relaxation.terms.precision import penalty_dtype
from equirelax.settings import COUNT, NOT_NEGATIVE, within
from equirelax.symmetry import Representation


class LowRankMap(LinearMap):
    """`U (V x)` on the feature axis, by two thin products. U V is never formed to apply it.

    Args:
        in_dim, out_dim: sizes.
        rank: r; `up` is U, of shape (out_dim, r), and `down` is V, of shape (r, in_dim).
        feature_axis: See `ResidualMap`.
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, feature_axis: int = -1) -> None:
        super().__init__()
        self.feature_axis = feature_axis
        self.up = nn.Parameter(torch.empty(out_dim, rank))
        self.down = nn.Parameter(torch.empty(rank, in_dim))

    def effective_weight(self) -> Tensor:
        """U V, of shape (out_dim, in_dim)."""
        return self.up @ self.down

    def linear_rule(self) -> Rule:
        """The rule of low-rank maps, whose penalties are computed by thin products, without the matrix."""
        return low_rank_sums

    def penalty_entries(self, in_rep: Representation) -> int:
        """Count the entries of the columns that replace all inputs."""
        group = in_rep.group
        moved = 1 + group.algebra_dim + group.discrete_count
        return in_rep.dim * len(self.down) * moved if in_rep.linear else 0

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * U (V x)`, with the scale applied to U."""
        up = self.up if scale is None else scale * self.up
        if self.feature_axis == -1:
            return row_product(up, row_product(self.down, dense(x)))
        return column_product(up, column_product(self.down, x))


class LowRankConvMap(KernelMap):
    """A convolution to r channels, which are then mixed at every pixel. The kernel U V is never formed to apply it.

    Args:
        in_dim, out_dim: channels.
        rank: r; `up` is U, of shape (out_dim, r), and `down` is V, of shape (r, in_dim, k, k).
        convolution: As for `ConvMap`; not transposed.
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, convolution: Convolution) -> None:
        super().__init__(convolution)
        self.up = nn.Parameter(torch.empty(out_dim, rank))
        self.down = nn.Parameter(torch.empty(rank, in_dim, *convolution.kernel_size))

    def effective_weight(self) -> Tensor:
        """U V, (out_dim, in_dim, k, k)."""
        return torch.tensordot(self.up, self.down, dims=1)

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * U (V * x)`, with the scale applied to U."""
        up = self.up if scale is None else scale * self.up
        thin = self.convolution(dense(x), self.down)
        return torch.matmul(up, thin.flatten(self.feature_axis + 1)).unflatten(
            -1, thin.shape[self.feature_axis + 1 :]
        )


_M = TypeVar("_M", LowRankMap, LowRankConvMap)


@register("low-rank")
@dataclass(frozen=True)
class LowRank(ResidualKind):
    """A linear map from all input features to all output features, of at most a given rank: `U (V x)`.

    On VN-PointNet dense residuals take three times the arithmetic of the network that they relax; residuals of rank 8 take a
    tenth of it. With U = 0 only U has a gradient at the first step, and V from the second step on.

    Attributes:
        rank: r, at least 1. If min(in_dim, out_dim) of a layer is smaller, that is the rank there, and the map is
            unrestricted.
        init: Initial values of U: "zeros" (the relaxed model starts as the strict one), "normal" with deviation `std`, or
            "default" (uniform within 1/sqrt(r)). V is always uniform within 1/sqrt(in_dim), since nothing would train
            otherwise.
        std: Standard deviation for "normal".
    """

    rank: int = within(COUNT, 8)
    init: Init = "zeros"
    std: float = within(NOT_NEGATIVE, 1e-4)

    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> LowRankMap:
        """A `LowRankMap` from in_rep.dim to out_rep.dim."""
        rank = min(self.rank, in_rep.dim, out_rep.dim)
        return self._filled(LowRankMap(in_rep.dim, out_rep.dim, rank, feature_axis), generator)

    def build_convolution(
        self, in_dim: int, out_dim: int, convolution: Convolution, generator: torch.Generator | None = None
    ) -> LowRankConvMap:
        """A `LowRankConvMap`.

        Raises:
            PlacementError: The convolution is transposed.
        """
        if convolution.transposed:
            raise PlacementError(
                "LowRank does not support transposed convolutions: use Dense, or exclude the layer"
            )
        rank = min(self.rank, in_dim * convolution.pixels, out_dim)
        return self._filled(LowRankConvMap(in_dim, out_dim, rank, convolution), generator)

    def _filled(self, map_: _M, generator: torch.Generator | None) -> _M:
        initialise([map_.down], "default", self.std, generator)
        initialise([map_.up], self.init, self.std, generator)
        return map_


def low_rank_sums(calls: Sequence[Penalised]) -> list[Terms]:
    """The terms of low-rank maps."""
    found = []
    for call in calls:
        dtype = penalty_dtype(call.map.up.dtype)
        up, down = call.map.up.to(dtype), call.map.down.to(dtype)
        found.append(
            low_rank_terms(up, down, list(call.inputs), call.feature_axis, call.in_rep, call.out_rep)
        )
    return found


def low_rank_terms(
    up: Tensor,
    down: Tensor,
    inputs: list[Columns],
    feature_axis: int,
    in_rep: Representation,
    out_rep: Representation,
) -> tuple[Tensor, Tensor]:
    """(Lie sum, norm sum) of the map x -> U V x over all inputs, differentiable with respect to U and V.

    Args:
        up: U, (out_dim, r), in at least float32.
        down: V, (r, in_dim), in at least float32.
        inputs: features on `feature_axis`, at least one tensor; they get no gradient.
    """
    inputs = [x.detach() for x in inputs]
    if in_transform():
        return linear_terms(up @ down, None, inputs, feature_axis, in_rep, out_rep)

    def images(weight: Tensor) -> tuple[Tensor, Tensor]:
        return linear_images(weight, inputs, feature_axis, in_rep, out_rep)

    with torch.no_grad():
        points = _representatives(_moved(down, in_rep), inputs, feature_axis)
    found: tuple[Tensor, Tensor] = _LowRank.apply(up, down, points, in_rep, out_rep, images)
    return found


class _LowRank(torch.autograd.Function):
    """The sums over `points` X Q. Gradients that are to be differentiated are computed over all inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        up: Tensor,
        down: Tensor,
        points: Tensor,
        in_rep: Representation,
        out_rep: Representation,
        images: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        moved = _moved(down, in_rep)
        y = (moved @ points).unflatten(0, (-1, len(down)))  # V x, V drho(A) x, V rho(g) x: (1 + k + c, r, m)
        outputs = up @ y
        difference = _acted(outputs[0], out_rep) - outputs[1:]
        ctx.reps, ctx.images = (in_rep, out_rep), images
        ctx.save_for_backward(up, down, points, y, outputs[0], difference)
        return difference.square().sum(), outputs[0].square().sum()

    @staticmethod
    def backward(ctx: Any, lie_grad: Tensor, norm_grad: Tensor) -> tuple[Tensor | None, ...]:
        up, down, points, y, first, difference = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            lie, norm = ctx.images(up @ down)
            by_product = 2 * (lie_grad * lie + norm_grad * norm)
            return by_product @ down.T, up.T @ by_product, None, None, None, None
        in_rep, out_rep = ctx.reps
        pulled = norm_grad * first + lie_grad * _acted_transposed(difference, out_rep)
        by_outputs = 2 * torch.cat([pulled[None], -lie_grad * difference])
        by_up = (by_outputs @ y.mT).sum(0)
        by_down = _moved_transposed((up.T @ by_outputs @ points.T), in_rep)
        return by_up, by_down, None, None, None, None


def _moved(down: Tensor, rep: Representation) -> Tensor:
    """P: V, V drho(A_i) and V rho(g_j), stacked vertically."""
    parts = [down]
    if rep.group.algebra_dim:
        parts.append(rep.right(down).flatten(0, 1))
    if rep.group.discrete_count:
        parts.append(rep.discrete_right(down).flatten(0, 1))
    return torch.cat(parts)


def _acted(y: Tensor, rep: Representation) -> Tensor:
    """drho(A_i) y and rho(g_j) y for y (dim, m): (k + c, dim, m)."""
    parts = [y.new_empty(0, *y.shape)]
    if rep.group.algebra_dim:
        parts.append(rep.derivative(y, axis=-2))
    if rep.group.discrete_count:
        parts.append(rep.discrete_left(y))
    return torch.cat(parts)


def _moved_transposed(gradients: Tensor, rep: Representation) -> Tensor:
    """The transpose of V -> P, on (1 + k + c, r, dim): (r, dim)."""
    k = rep.group.algebra_dim
    total = gradients[0].clone()
    if k:
        total += rep.right_transposed(gradients[1 : k + 1])
    if rep.group.discrete_count:
        total += rep.discrete_right_transposed(gradients[k + 1 :])
    return total


def _acted_transposed(moved: Tensor, rep: Representation) -> Tensor:
    """The transpose of `_acted`, on (k + c, dim, m): (dim, m)."""
    k = rep.group.algebra_dim
    total = torch.zeros_like(moved[0]) if len(moved) else moved.new_zeros(rep.dim, moved.shape[-1])
    if k:
        total += rep.left_transposed(moved[:k])
    if rep.group.discrete_count:
        total += rep.discrete_left_transposed(moved[k:])
    return total


def _representatives(matrix: Tensor, inputs: list[Columns], feature_axis: int) -> Tensor:
    """X Q, of shape (in_dim, m), where Q spans the rows of `matrix` X; or X itself if it has no more columns."""
    blocks = [_as_columns(x, feature_axis, matrix.dtype) for x in inputs]
    count = sum(x.shape[0] * x.shape[2] for x in blocks)
    if count <= len(matrix):
        return torch.cat([dense(x).transpose(0, 1).flatten(1) for x in blocks], dim=1)
    seen = torch.cat([column_product(matrix, x).mT.flatten(0, 1) for x in blocks])  # (N, m)
    basis = torch.linalg.qr(seen).Q
    total = matrix.new_zeros(matrix.shape[1], len(matrix))
    start = 0
    for x in blocks:
        batch, _, points = x.shape
        part = basis[start : start + batch * points].view(batch, points, -1)
        total += _times(x, part)
        start += batch * points
    return total


def _as_columns(x: Columns, feature_axis: int, dtype: torch.dtype) -> Columns:
    """The inputs as (batch, dim, points), as a view if possible."""
    if isinstance(x, SharedColumns):
        return x.to(dtype)
    if feature_axis == -2 and x.shape[-1] == 1:  # such as chosen rows: one product instead of one per row
        x, feature_axis = x.squeeze(-1), -1
    if feature_axis == -1:
        return x.reshape(1, -1, x.shape[-1]).mT.to(dtype)
    return x.reshape(-1, *x.shape[-2:]).to(dtype)


def _times(x: Columns, basis: Tensor) -> Tensor:
    """The sum over samples of x (batch, dim, points) times basis (batch, points, m): (dim, m)."""
    if isinstance(x, SharedColumns):
        return torch.cat([_times(x.own, basis), x.common.mT @ basis.sum(1)])
    return torch.bmm(x, basis).sum(0)
