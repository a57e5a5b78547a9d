"""Penalties of low-rank linear residuals f(x) = U V x: exact, at the cost of thin products.

Both sums of CR's regulariser depend on the inputs X = [x_1 .. x_N] through Y = P X alone, with
P = [V; V drho_in(A_1); ..; V rho_in(g_1); ..] of m = r (1 + generators) rows:

    sum_n || drho_out(A) U V x_n - U V drho_in(A) x_n ||^2  =  || F Y ||^2,     F of U alone

With orthonormal columns Q that span the rows of Y, || F Y ||^2 = || F P (X Q) ||^2, and with Q held fixed the
gradients agree too: 2 F^T F Y Q Q^T X^T = 2 F^T F Y X^T. So the m columns X Q stand for all N inputs, and no Gram matrix
of the inputs (in_dim, in_dim) is made. Second derivatives do not agree, for dY leaves the span of Q: they are taken of all
inputs, in weight space. Nothing is squared before the difference is taken: an equivariant U V has a Lie
sum of the square of rounding, as it has in `quadratic`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from equirelax.relaxation.columns import Columns, SharedColumns, column_product, dense
from equirelax.relaxation.terms.linear import linear_images
from equirelax.symmetry import Representation


def low_rank_terms(
    up: Tensor,
    down: Tensor,
    inputs: list[Columns],
    feature_axis: int,
    in_rep: Representation,
    out_rep: Representation,
) -> tuple[Tensor, Tensor]:
    """(Lie sum, norm sum) of the map x -> U V x over all inputs; differentiable with respect to U and V.

    Args:
        up: U, (out_dim, r). down: V, (r, in_dim); both of at least float32.
        inputs: features on `feature_axis`, at least one; they get no gradient.
    """
    inputs = [x.detach() for x in inputs]

    def images(weight: Tensor) -> tuple[Tensor, Tensor]:
        return linear_images(weight, inputs, feature_axis, in_rep, out_rep)

    with torch.no_grad():
        points = _representatives(_moved(down, in_rep), inputs, feature_axis)
    found: tuple[Tensor, Tensor] = _LowRank.apply(up, down, points, in_rep, out_rep, images)
    return found


class _LowRank(torch.autograd.Function):
    """The sums over `points` X Q. Where gradients are to be differentiated, they are those over all inputs."""

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
    """P: V, V drho(A_i) and V rho(g_j), one below the other."""
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
    """X Q, of shape (in_dim, m), where Q spans the rows of `matrix` X; or X itself where it has no more columns."""
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
    """(batch, dim, points), without a copy where there is a view of it."""
    if isinstance(x, SharedColumns):
        return x.to(dtype)
    if feature_axis == -2 and x.shape[-1] == 1:  # such as a choice of rows: one product, not one for each
        x, feature_axis = x.squeeze(-1), -1
    if feature_axis == -1:
        return x.reshape(1, -1, x.shape[-1]).mT.to(dtype)
    return x.reshape(-1, *x.shape[-2:]).to(dtype)


def _times(x: Columns, basis: Tensor) -> Tensor:
    """sum over samples of x (batch, dim, points) times basis (batch, points, m): (dim, m)."""
    if isinstance(x, SharedColumns):
        return torch.cat([_times(x.own, basis), x.common.mT @ basis.sum(1)])
    return torch.bmm(x, basis).sum(0)
