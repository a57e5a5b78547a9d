"""Penalties of linear residuals in the space of their inputs: cheaper than weight space for few rows.

With the inputs as columns X, the Lie terms of f(x) = W x are || W (drho_in(A) X) - drho_out(A) (W X) ||^2.
All products of one residual with X, with every drho_in(A) X and with every rho_in(g) X are one matrix product
W [A_1 X, ..., X], and its gradient is one more. Nothing of the size of W is made per generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equirelax.penalties.operators import Operators, quadratic_backward
from equirelax.symmetry import Representation


@dataclass(frozen=True)
class Samples(Operators):
    """L and N of weights (residuals, out_dim, in_dim); every residual has as many rows (n, in_dim) as the others."""

    rows: list[Tensor]
    in_rep: Representation
    out_rep: Representation

    def evaluate(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        in_rep, out_rep = self.in_rep, self.out_rep
        count, out_dim, in_dim = weights.shape
        n, k, c = len(self.rows[0]), in_rep.group.algebra_dim, in_rep.group.discrete_count
        x = torch.stack([r.T for r in self.rows], dim=1)  # (in_dim, residuals, n)
        moved = x.new_empty(count, in_dim, k + c + 1, n)  # [A_1 x, ..., g_1 x, ..., x]
        _act(moved, x, in_rep, k, c)
        moved[:, :, -1] = x.transpose(0, 1)
        outputs = torch.bmm(weights, moved.flatten(2)).view(count, out_dim, k + c + 1, n)
        y = outputs[:, :, -1].contiguous()  # (residuals, out_dim, n)
        there = torch.empty_like(outputs)
        _act(there, y.transpose(0, 1), out_rep, k, c)
        difference = outputs[:, :, :-1] - there[:, :, :-1]
        # d/dW ||W A x - A' W x||^2 = 2 (D (A x)^T - (A'^T D) x^T), D the difference: one product for all
        factors = torch.cat([difference, -_adjoint(difference, out_rep, k, c)], dim=2)
        lie_gradient = torch.bmm(factors.flatten(2), moved.flatten(2).transpose(1, 2))
        norm_gradient = torch.bmm(y, x.permute(1, 2, 0))
        return (
            difference.square().sum(dim=(1, 2, 3)),
            y.square().sum(dim=(1, 2)),
            lie_gradient,
            norm_gradient,
        )


class SampledTerms(torch.autograd.Function):
    """(Lie sums, norm sums), each (residuals,), of weights (residuals, out_dim, in_dim), of `Samples`."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, operators: Operators) -> tuple[Tensor, Tensor]:
        lie, norm, lie_gradient, norm_gradient = operators.evaluate(weights)
        ctx.operators = operators
        ctx.save_for_backward(weights, lie_gradient, norm_gradient)
        return lie, norm

    @staticmethod
    def backward(ctx: Any, lie_grad: Tensor, norm_grad: Tensor) -> tuple[Tensor, None]:
        return quadratic_backward(ctx, lie_grad[:, None, None], norm_grad[:, None, None]), None


def _act(out: Tensor, x: Tensor, rep: Representation, k: int, c: int) -> None:
    """Write drho(A_i) x, rho(g_j) x of x (dim, residuals, n) to out[:, :, :k+c] (residuals, dim, k+c, n)."""
    dim, count, n = x.shape
    flat = x.reshape(dim, -1)
    if k:
        out[:, :, :k] = rep.left(flat).view(k, dim, count, n).permute(2, 1, 0, 3)
    if c:
        out[:, :, k : k + c] = rep.discrete_left(flat).view(c, dim, count, n).permute(2, 1, 0, 3)


def _adjoint(difference: Tensor, rep: Representation, k: int, c: int) -> Tensor:
    """sum_i drho(A_i)^T D_i + sum_j rho(g_j)^T D_j, D (residuals, dim, k + c, n): (residuals, dim, 1, n)."""
    count, dim, _, n = difference.shape
    stacks = difference.permute(2, 1, 0, 3)  # (k + c, dim, residuals, n)
    total = difference.new_zeros(dim, count * n)
    if k:
        total += rep.left_transposed(stacks[:k].reshape(k, dim, -1))
    if c:
        total += rep.discrete_left_transposed(stacks[k:].reshape(c, dim, -1))
    return total.view(dim, count, n).transpose(0, 1).unsqueeze(2)
