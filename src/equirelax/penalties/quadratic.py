"""Penalties of a linear residual in weight space: exact, without another pass through the model.

For f(x) = W x and inputs x_1 .. x_N with Gram matrix C = sum_n x_n x_n^T:

    sum_n || drho_out(A) W x_n - W drho_in(A) x_n ||^2  =  tr(K C K^T)      (Lie term)
    sum_n || W x_n ||^2                                 =  tr(W C W^T)      (norm term)

    with  K = W drho_in(A) - drho_out(A) W

and the same with rho(g) for drho(A) for one element g of every component of a disconnected or finite group
(CR, section 4). A bias b is outside of W: with x~ = [x, 1] and W~ = [W, b] it is the same formula, drho_in
acting as 0 and rho_in as 1 on the last entry.

Both sums are quadratic in W, so their gradients are 2 L W and 2 N W with maps L and N that are linear in W and their own
transposes: that is how second and higher derivatives are taken (`operators`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equirelax.penalties.moments import Moment, moment_of
from equirelax.penalties.operators import Images, Operators, quadratic_backward
from equirelax.penalties.sampled import SampledTerms, Samples
from equirelax.relaxation.columns import Columns, dense
from equirelax.symmetry import Representation, trivial


@dataclass(frozen=True)
class _Moments(Operators):
    """L and N of weights (out_dim, residuals, in_dim) between the same two representations.

    `moments` holds the Gram matrix (in_dim, in_dim) of every residual's inputs. With the residuals in the
    middle both `right` and `left` see plain matrices, so that a step costs as many small operations for eight
    residuals as for one. With M = K C, L W = sum M drho_in^T - drho_out^T M needs no second product with C.
    """

    moments: list[Moment]
    in_rep: Representation
    out_rep: Representation

    def evaluate(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        in_rep, out_rep = self.in_rep, self.out_rep
        out_dim, count, in_dim = weights.shape
        as_right, as_left = weights.reshape(-1, in_dim), weights.reshape(out_dim, -1)
        k, c = in_rep.group.algebra_dim, in_rep.group.discrete_count
        stack = weights.new_empty(k + c + 1, out_dim, count, in_dim)
        if k:
            torch.sub(
                in_rep.right(as_right).view_as(stack[:k]),
                out_rep.left(as_left).view_as(stack[:k]),
                out=stack[:k],
            )
        if c:
            torch.sub(
                in_rep.discrete_right(as_right).view_as(stack[k:-1]),
                out_rep.discrete_left(as_left).view_as(stack[k:-1]),
                out=stack[k:-1],
            )
        stack[-1] = weights
        products = torch.empty_like(stack)
        tall, tall_products = stack.view(-1, count, in_dim), products.view(-1, count, in_dim)
        for i, moment in enumerate(self.moments):
            moment.times(tall[:, i], tall_products[:, i])
        # Rounding can push a sum of squares that is zero just below it when it goes through the Gram matrix.
        sums = (products * stack).sum(dim=(1, 3)).clamp(min=0)
        gradient = torch.zeros_like(weights)
        if k:
            gradient += in_rep.right_transposed(products[:k].reshape(k, -1, in_dim)).view_as(weights)
            gradient -= out_rep.left_transposed(products[:k].reshape(k, out_dim, -1)).view_as(weights)
        if c:
            gradient += in_rep.discrete_right_transposed(products[k:-1].reshape(c, -1, in_dim)).view_as(
                weights
            )
            gradient -= out_rep.discrete_left_transposed(products[k:-1].reshape(c, out_dim, -1)).view_as(
                weights
            )
        return sums[:-1].sum(0), sums[-1], gradient, products[-1]


class _Quadratic(torch.autograd.Function):
    """(Lie sums, norm sums), each (residuals,), for weights (out_dim, residuals, in_dim), of `_Moments`."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, operators: Operators) -> tuple[Tensor, Tensor]:
        lie, norm, gradient, product = operators.evaluate(weights)
        ctx.operators = operators
        ctx.save_for_backward(weights, gradient, product)
        return lie, norm

    @staticmethod
    def backward(ctx: Any, lie_grad: Tensor, norm_grad: Tensor) -> tuple[Tensor, None]:
        return quadratic_backward(ctx, lie_grad[:, None], norm_grad[:, None]), None


def as_rows(x: Columns, feature_axis: int, dtype: torch.dtype) -> Tensor:
    """Inputs as rows (N, dim), in at least float32."""
    x = dense(x)
    if feature_axis == -2:
        x = x.transpose(-1, -2)
    return x.reshape(-1, x.shape[-1]).to(dtype)


def with_one(rows: Tensor) -> Tensor:
    """Rows (N, dim) with a last entry 1, of shape (N, dim + 1): what a bias is multiplied by."""
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)


def second_moment(
    inputs: list[Columns], feature_axis: int, dtype: torch.dtype, dim: int, bias: bool
) -> Moment | Tensor:
    """The second moment, or the rows (N, dim) where those are fewer; with a last feature 1 for a bias."""
    count = sum(x.numel() // x.shape[feature_axis] for x in inputs)
    if count > dim and not bias:
        return moment_of(inputs, feature_axis, dtype)
    rows = torch.cat([as_rows(x, feature_axis, dtype) for x in inputs])
    rows = with_one(rows) if bias else rows
    return Moment(rows.T @ rows) if count > dim else rows


def stacked_terms(
    weights: list[Tensor],
    biases: list[Tensor] | None,
    data: Sequence[Moment | Tensor],
    in_rep: Representation,
    out_rep: Representation,
) -> tuple[Tensor, Tensor]:
    """(Lie sums, norm sums), each (residuals,), of maps between the same two representations.

    Args:
        weights: of shape (out_dim, in_dim) each. biases: (out_dim,) each, or None for maps without.
        data: from `second_moment`, one for every residual, all of them moments or all of them rows.
    """
    if biases is not None:
        weights = [torch.cat([w, b[:, None]], dim=1) for w, b in zip(weights, biases, strict=True)]
        in_rep = in_rep + trivial(in_rep.group)
    if isinstance(data[0], Moment):
        moments = [d for d in data if isinstance(d, Moment)]
        return _Quadratic.apply(torch.stack(weights, dim=1), _Moments(moments, in_rep, out_rep))
    rows = [d for d in data if isinstance(d, Tensor)]
    return SampledTerms.apply(torch.stack(weights), Samples(rows, in_rep, out_rep))


def linear_terms(
    weight: Tensor,
    bias: Tensor | None,
    inputs: Sequence[Columns],
    feature_axis: int,
    in_rep: Representation,
    out_rep: Representation,
) -> tuple[Tensor, Tensor]:
    """(Lie sum, norm sum) of the map x -> W x + b over all inputs;
    differentiable with respect to W and b, any number of times.

    Args:
        weight: (out_dim, in_dim). bias: (out_dim,) or None.
        inputs: tensors with features on `feature_axis`, at least one.
    """
    data = second_moment(list(inputs), feature_axis, weight.dtype, weight.shape[1], bias is not None)
    lie, norm = stacked_terms([weight], None if bias is None else [bias], [data], in_rep, out_rep)
    return lie[0], norm[0]


def linear_images(
    weight: Tensor,
    inputs: Sequence[Columns],
    feature_axis: int,
    in_rep: Representation,
    out_rep: Representation,
) -> tuple[Tensor, Tensor]:
    """(L W, N W), both (out_dim, in_dim): half the gradients of `linear_terms`, differentiable any number of times."""
    data = second_moment(list(inputs), feature_axis, weight.dtype, weight.shape[1], False)
    if isinstance(data, Moment):
        lie, norm = Images.apply(weight[:, None], _Moments([data], in_rep, out_rep))
        return lie[:, 0], norm[:, 0]
    lie, norm = Images.apply(weight[None], Samples([data], in_rep, out_rep))
    return lie[0], norm[0]
