"""Exact penalties of a linear residual in weight space, without another pass through the model.

For f(x) = W x and inputs x_1 .. x_N with Gram matrix C = sum_n x_n x_n^T:

    sum_n || drho_out(A) W x_n - W drho_in(A) x_n ||^2  =  tr(K C K^T)      (Lie term)
    sum_n || W x_n ||^2                                 =  tr(W C W^T)      (norm term)

    with  K = W drho_in(A) - drho_out(A) W

and the same with rho(g) instead of drho(A) for one element g of every component of a disconnected or finite group
(CR, section 4). With a bias b the formula is the same for x~ = [x, 1] and W~ = [W, b], where drho_in
acts as 0 and rho_in as 1 on the last entry.

Both sums are quadratic in W, <W, L W> and <W, N W>, with maps L and N that are linear and symmetric. So the
gradients are 2 L W and 2 N W, and the gradient of <G, L W> is L G. All derivatives consist of L and N, and a backward
pass with `create_graph=True` applies them once more.

If there are fewer rows than features, the sums are computed from the rows themselves. With the inputs as columns X, the Lie
terms are || W (drho_in(A) X) - drho_out(A) (W X) ||^2. All products with X, with every drho_in(A) X and with every
rho_in(g) X are one matrix product W [A_1 X, ..., X], and the gradient is another one, so that no tensor of the size of W is
made per generator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equirelax.relaxation.columns import Columns, SharedColumns, dense
from equirelax.relaxation.surroundings import in_transform
from equirelax.symmetry import Representation, trivial

# The parts that samples share are kept as rows if features outnumber them by at least this factor.
_FEWER = 4


@dataclass(frozen=True)
class Moment:
    """C = [[leading, 0], [0, 0]] + rows^T rows.

    If all points of a sample share some features, `leading` is the scatter of the other features around each sample's
    mean, and there is one row per sample. Otherwise `leading` is all of C.

    Args:
        leading: (d, d), symmetric, d <= dim.
        rows: (r, dim), or None.
    """

    leading: Tensor
    rows: Tensor | None = None

    def times(self, matrix: Tensor, out: Tensor) -> None:
        """Write matrix C to out, both (m, dim)."""
        if self.rows is None:
            torch.mm(matrix, self.leading, out=out)
            return
        d = len(self.leading)
        torch.mm(matrix @ self.rows.T, self.rows, out=out)
        out[:, :d].addmm_(matrix[:, :d], self.leading)

    def dense(self) -> Tensor:
        """C as a dense matrix, (dim, dim)."""
        if self.rows is None:
            return self.leading
        full = self.rows.T @ self.rows
        d = len(self.leading)
        full[:d, :d] += self.leading
        return full


def moment_of(inputs: list[Columns], feature_axis: int, dtype: torch.dtype) -> Moment:
    """The sum over all inputs of x x^T. Inputs that share features in different ways are made dense.

    Args:
        inputs: features on `feature_axis`, at least one.
    """
    shared = [x for x in inputs if isinstance(x, SharedColumns)]
    if len(shared) == len(inputs) and len({x.own.shape[1] for x in shared}) == 1:
        samples, dim = sum(len(x.own) for x in shared), shared[0].shape[1]
        if samples * _FEWER <= dim:
            return _shared_moment([x.to(dtype) for x in shared])
    return Moment(gram_matrix([dense(x) for x in inputs], feature_axis, dtype))


def _shared_moment(inputs: list[SharedColumns]) -> Moment:
    leading, rows = [], []
    for x in inputs:
        mean = x.own.mean(2)  # (batch, d)
        centred = x.own - mean[..., None]
        leading.append(torch.bmm(centred, centred.mT).sum(0))
        rows.append(x.own.shape[2] ** 0.5 * torch.cat([mean, x.common], dim=1))
    return Moment(torch.stack(leading).sum(0), torch.cat(rows))


def gram_matrix(inputs: list[Tensor], feature_axis: int, dtype: torch.dtype) -> Tensor:
    """The sum over all inputs of x x^T, of shape (dim, dim). Columns (batch, dim, points) are not transposed."""
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


class Operators(ABC):
    """L and N of several residuals, on their stacked weights."""

    @abstractmethod
    def sums(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """<W, L W> and <W, N W>, each (residuals,), by operations that torch can differentiate and vectorise.

        This is for transforms of `torch.func`. `evaluate` needs half as many products, and writes in place.
        """

    @abstractmethod
    def evaluate(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """<W, L W> and <W, N W>, each (residuals,), then L W and N W, each of the shape of the weights, without a graph."""


class Images(torch.autograd.Function):
    """(L W, N W)."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, operators: Operators) -> tuple[Tensor, Tensor]:
        ctx.operators = operators
        _, _, lie, norm = operators.evaluate(weights)
        return lie, norm

    @staticmethod
    def backward(ctx: Any, lie_grad: Tensor, norm_grad: Tensor) -> tuple[Tensor, None]:
        of_lie, _ = Images.apply(lie_grad, ctx.operators)
        _, of_norm = Images.apply(norm_grad, ctx.operators)
        return of_lie + of_norm, None


def quadratic_backward(ctx: Any, lie_grad: Tensor, norm_grad: Tensor) -> Tensor:
    """The gradient in the weights of a function whose context has `operators` and saved (W, L W, N W).

    Args:
        lie_grad, norm_grad: Gradients of the two sums, which broadcast with the weights.
    """
    weights, lie, norm = ctx.saved_tensors
    # in a backward pass, gradients are recorded only under create_graph
    if torch.is_grad_enabled():
        lie, norm = Images.apply(weights, ctx.operators)
    return 2 * (lie_grad * lie + norm_grad * norm)


@dataclass(frozen=True)
class _Moments(Operators):
    """L and N of weights (out_dim, residuals, in_dim) between the same two representations.

    `moments` holds the Gram matrix (in_dim, in_dim) of every residual's inputs. With the residuals on the
    middle axis, both `right` and `left` see plain matrices, so that a step needs as many small operations for eight
    residuals as for one. With M = K C, L W = sum M drho_in^T - drho_out^T M needs no second product with C.
    """

    moments: list[Moment]
    in_rep: Representation
    out_rep: Representation

    def sums(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """See `Operators`."""
        in_rep, out_rep = self.in_rep, self.out_rep
        out_dim, _, in_dim = weights.shape
        as_right, as_left = weights.reshape(-1, in_dim), weights.reshape(out_dim, -1)
        shape = (-1, *weights.shape)
        parts = [weights[None]]
        if in_rep.group.algebra_dim:
            parts.append(in_rep.right(as_right).reshape(shape) - out_rep.left(as_left).reshape(shape))
        if in_rep.group.discrete_count:
            moved = in_rep.discrete_right(as_right).reshape(shape)
            parts.append(moved - out_rep.discrete_left(as_left).reshape(shape))
        stack = torch.cat(parts).movedim(2, 0)  # (residuals, 1 + k + c, out_dim, in_dim)
        products = stack.flatten(1, 2) @ torch.stack([moment.dense() for moment in self.moments])
        sums = (products.view_as(stack) * stack).sum(dim=(2, 3))
        # as in `evaluate`, clamp sums that rounding makes negative, without affecting the gradient
        sums = sums + (sums.clamp(min=0) - sums).detach()
        return sums[:, 1:].sum(1), sums[:, 0]

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
        # Computed from the Gram matrix, a sum of squares that is zero can be slightly negative by rounding.
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


@dataclass(frozen=True)
class _Samples(Operators):
    """L and N of weights (residuals, out_dim, in_dim), where all residuals have the same number of rows (n, in_dim)."""

    rows: list[Tensor]
    in_rep: Representation
    out_rep: Representation

    def sums(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """See `Operators`."""
        x = torch.stack([r.T for r in self.rows], dim=1)  # (in_dim, residuals, n)
        moved = torch.cat([x[None], _acted(x, self.in_rep)])  # x, A_1 x, ..., g_1 x, ...
        outputs = torch.matmul(weights, moved.transpose(1, 2))  # (1 + k + c, residuals, out_dim, n)
        y = outputs[0]
        difference = outputs[1:] - _acted(y.transpose(0, 1), self.out_rep).transpose(1, 2)
        return difference.square().sum(dim=(0, 2, 3)), y.square().sum(dim=(1, 2))

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


class _Sampled(torch.autograd.Function):
    """(Lie sums, norm sums), each (residuals,), of weights (residuals, out_dim, in_dim), of `_Samples`."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, operators: Operators) -> tuple[Tensor, Tensor]:
        lie, norm, lie_gradient, norm_gradient = operators.evaluate(weights)
        ctx.operators = operators
        ctx.save_for_backward(weights, lie_gradient, norm_gradient)
        return lie, norm

    @staticmethod
    def backward(ctx: Any, lie_grad: Tensor, norm_grad: Tensor) -> tuple[Tensor, None]:
        return quadratic_backward(ctx, lie_grad[:, None, None], norm_grad[:, None, None]), None


def _acted(x: Tensor, rep: Representation) -> Tensor:
    """drho(A_i) x and rho(g_j) x for x (dim, residuals, n): (k + c, dim, residuals, n)."""
    flat, parts = x.reshape(len(x), -1), [x.new_empty(0, *x.shape)]
    if rep.group.algebra_dim:
        parts.append(rep.left(flat).reshape(-1, *x.shape))
    if rep.group.discrete_count:
        parts.append(rep.discrete_left(flat).reshape(-1, *x.shape))
    return torch.cat(parts)


def _act(out: Tensor, x: Tensor, rep: Representation, k: int, c: int) -> None:
    """Write drho(A_i) x and rho(g_j) x for x (dim, residuals, n) to out[:, :, :k+c] (residuals, dim, k+c, n)."""
    dim, count, n = x.shape
    flat = x.reshape(dim, -1)
    if k:
        out[:, :, :k] = rep.left(flat).view(k, dim, count, n).permute(2, 1, 0, 3)
    if c:
        out[:, :, k : k + c] = rep.discrete_left(flat).view(c, dim, count, n).permute(2, 1, 0, 3)


def _adjoint(difference: Tensor, rep: Representation, k: int, c: int) -> Tensor:
    """sum_i drho(A_i)^T D_i + sum_j rho(g_j)^T D_j for D (residuals, dim, k + c, n): (residuals, dim, 1, n)."""
    count, dim, _, n = difference.shape
    stacks = difference.permute(2, 1, 0, 3)  # (k + c, dim, residuals, n)
    total = difference.new_zeros(dim, count * n)
    if k:
        total += rep.left_transposed(stacks[:k].reshape(k, dim, -1))
    if c:
        total += rep.discrete_left_transposed(stacks[k:].reshape(c, dim, -1))
    return total.view(dim, count, n).transpose(0, 1).unsqueeze(2)


def as_rows(x: Columns, feature_axis: int, dtype: torch.dtype) -> Tensor:
    """The inputs as rows (N, dim), in at least float32."""
    x = dense(x)
    if feature_axis == -2:
        x = x.transpose(-1, -2)
    return x.reshape(-1, x.shape[-1]).to(dtype)


def with_one(rows: Tensor) -> Tensor:
    """Rows (N, dim) with a last entry 1 for a bias, of shape (N, dim + 1)."""
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)


def second_moment(
    inputs: list[Columns], feature_axis: int, dtype: torch.dtype, dim: int, bias: bool
) -> Moment | Tensor:
    """The second moment, or the rows (N, dim) if there are fewer of them; with a last feature 1 for a bias."""
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
        weights: Weights of shape (out_dim, in_dim).
        biases: Biases of shape (out_dim,), or None for maps without.
        data: The result of `second_moment` for every residual, all of them moments or all of them rows.
    """
    if biases is not None:
        weights = [torch.cat([w, b[:, None]], dim=1) for w, b in zip(weights, biases, strict=True)]
        in_rep = in_rep + trivial(in_rep.group)
    if isinstance(data[0], Moment):
        stack = torch.stack(weights, dim=1)
        moments = _Moments([d for d in data if isinstance(d, Moment)], in_rep, out_rep)
        return moments.sums(stack) if in_transform() else _Quadratic.apply(stack, moments)
    stack = torch.stack(weights)
    samples = _Samples([d for d in data if isinstance(d, Tensor)], in_rep, out_rep)
    return samples.sums(stack) if in_transform() else _Sampled.apply(stack, samples)


def linear_terms(
    weight: Tensor,
    bias: Tensor | None,
    inputs: Sequence[Columns],
    feature_axis: int,
    in_rep: Representation,
    out_rep: Representation,
) -> tuple[Tensor, Tensor]:
    """(Lie sum, norm sum) of the map x -> W x + b over all inputs, differentiable in W and b any number of times.

    Args:
        weight: (out_dim, in_dim).
        bias: (out_dim,) or None.
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
    lie, norm = Images.apply(weight[None], _Samples([data], in_rep, out_rep))
    return lie[0], norm[0]
