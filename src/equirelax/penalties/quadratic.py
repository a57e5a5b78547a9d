"""Penalties of a linear residual in weight space: exact, without another pass through the model.

For f(x) = W x and inputs x_1 .. x_N with Gram matrix C = sum_n x_n x_n^T:

    sum_n || drho_out(A) W x_n - W drho_in(A) x_n ||^2  =  tr(K C K^T),   K = W drho_in(A) - drho_out(A) W      (Lie term)
    sum_n || W x_n ||^2                                 =  tr(W C W^T)                                          (norm term)

and the same with rho(g) for drho(A) for one element g of every component of a disconnected or finite group (CR, section 4). A bias b is
outside of W: with x~ = [x, 1] and W~ = [W, b] it is the same formula, drho_in acting as 0 and rho_in as 1 on the last entry.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from equirelax.symmetry import Representation, trivial


class _Quadratic(torch.autograd.Function):
    """(Lie sum, norm sum) for W and either the Gram matrix (in_dim, in_dim) or rows (N, in_dim) as `data`.

    The gradient is written out: with M = K C, d/dW tr(K C K^T) = 2 (M drho_in^T - drho_out^T M) needs no second product with C.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, data: Tensor, gram: bool, in_rep: Representation, out_rep: Representation) -> tuple[Tensor, Tensor]:
        def times_c(matrix: Tensor) -> Tensor:
            return matrix @ data if gram else (matrix @ data.T) @ data

        gradient = torch.zeros_like(weight)
        lie = weight.new_zeros(())
        # scalar-only maps and groups without generators leave nothing to do in either part
        continuous = in_rep.right(weight) - out_rep.left(weight)
        if continuous.shape[0]:
            product = times_c(continuous)
            lie = lie + torch.sum(product * continuous)
            gradient += in_rep.right_transposed(product) - out_rep.left_transposed(product)
        discrete = in_rep.discrete_right(weight) - out_rep.discrete_left(weight)
        if discrete.shape[0]:
            product = times_c(discrete)
            lie = lie + torch.sum(product * discrete)
            gradient += in_rep.discrete_right_transposed(product) - out_rep.discrete_left_transposed(product)
        product = times_c(weight)
        norm = torch.sum(product * weight)
        ctx.save_for_backward(gradient, product)
        # Rounding can push a sum of squares that is zero just below it when it goes through the Gram matrix.
        return lie.clamp(min=0), norm.clamp(min=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, lie_grad: Tensor, norm_grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        gradient, product = ctx.saved_tensors
        return 2 * (lie_grad * gradient + norm_grad * product), None, None, None, None


def as_rows(x: Tensor, feature_axis: int, dtype: torch.dtype) -> Tensor:
    """Inputs as rows (N, dim), in at least float32."""
    if feature_axis == -2:
        x = x.transpose(-1, -2)
    return x.reshape(-1, x.shape[-1]).to(dtype)


def gram_matrix(inputs: list[Tensor], feature_axis: int, dtype: torch.dtype) -> Tensor:
    """Sum over all inputs of x x^T, of shape (dim, dim); columns (batch, dim, points) are not transposed."""
    total: Tensor | None = None
    for x in inputs:
        x = x.to(dtype)
        if feature_axis == -1:
            flat = x.reshape(-1, x.shape[-1])
            part = flat.T @ flat
        else:
            flat = x.reshape(-1, *x.shape[-2:])
            part = torch.bmm(flat, flat.transpose(1, 2)).sum(0)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("gram_matrix needs at least one input")
    return total


def with_one(rows: Tensor) -> Tensor:
    """Rows (N, dim) with a last entry 1, of shape (N, dim + 1): what a bias is multiplied by."""
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)


def linear_terms(
    weight: Tensor, bias: Tensor | None, inputs: list[Tensor], feature_axis: int, in_rep: Representation, out_rep: Representation
) -> tuple[Tensor, Tensor]:
    """(Lie sum, norm sum) of the map x -> W x + b over all inputs; differentiable once with respect to W and b.

    Args:
        weight: (out_dim, in_dim). bias: (out_dim,) or None.
        inputs: tensors with features on `feature_axis`, at least one.
    """
    count = sum(x.numel() // x.shape[feature_axis] for x in inputs)
    if bias is not None:
        rows = torch.cat([with_one(as_rows(x, feature_axis, weight.dtype)) for x in inputs])
        data, gram = (rows.T @ rows, True) if count > weight.shape[1] else (rows, False)
        weight, in_rep = torch.cat([weight, bias[:, None]], dim=1), in_rep + trivial(in_rep.group)
    elif count > weight.shape[1]:
        data, gram = gram_matrix(inputs, feature_axis, weight.dtype), True
    else:
        data, gram = torch.cat([as_rows(x, feature_axis, weight.dtype) for x in inputs]), False
    return _Quadratic.apply(weight, data, gram, in_rep, out_rep)
