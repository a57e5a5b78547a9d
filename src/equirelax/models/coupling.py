"""The tensor product of scalars and vectors with one scalar and one vector: what a network of l <= 1 consists of.

Inputs are scalars x0 and vectors x1, attributes a scalar a0 and a vector a1. Of a fully connected tensor product
only four paths exist, and with their Wigner symbols and path weights written out they are

    scalars' = W00^T (a0 x0) + W11^T (x1 . a1) / sqrt(3) + bias
    vectors' = a0 (W10^T x1) + (W01^T x0) a1

Features are transposed, (dim, rows): a slot of vectors (mul, 3, rows) then is a matrix (mul, 3 rows), so that channels
are mixed by one matrix product, without a copy, and everything else runs along contiguous rows.

`couple` is the formula in ordinary operations. `CoupleByHand` has the same values and derivatives with a third of
the operations: results are written where they belong, and what autograd would add up is accumulated in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT_3 = sqrt(3)


class Slots(NamedTuple):
    """Sizes: inputs (multiplicity, 1 for scalars or 3 for vectors), and the numbers of output scalars and vectors."""

    inputs: tuple[tuple[int, int], ...]
    scalars: int
    vectors: int

    def rows(self) -> list[slice]:
        """Where each input slot lies among the transposed features."""
        slices, start = [], 0
        for mul, dim in self.inputs:
            slices.append(slice(start, start + mul * dim))
            start += mul * dim
        return slices

    def weights(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of the flat weight, for each input slot (mul, scalars) and (mul, vectors); e3nn's order of paths:
        the attribute's scalar comes first, and it leads from scalars to scalars and from vectors to vectors."""
        views, start = [], 0
        for mul, dim in self.inputs:
            sizes = (self.scalars, self.vectors) if dim == 1 else (self.vectors, self.scalars)
            parts = []
            for size in sizes:
                parts.append(flat[start : start + mul * size].view(mul, size))
                start += mul * size
            views.append((parts[0], parts[1]) if dim == 1 else (parts[1], parts[0]))
        return views


def couple(x: Tensor, attributes: Tensor, weight: Tensor, bias: Tensor, slots: Slots) -> Tensor:
    """x (dim, rows), attributes (4, rows), flat weight, bias (scalars,) -> (scalars + 3 vectors, rows)."""
    a0, a1 = attributes[:1], attributes[1:]
    parts = list(zip(slots.rows(), slots.inputs, slots.weights(weight), strict=True))
    s = bias[:, None].expand(-1, x.shape[1])
    v = x.new_zeros(slots.vectors, 3, x.shape[1])
    of_scalars = [(x[rows], *weights) for rows, (_, dim), weights in parts if dim == 1]
    if of_scalars:
        x0, w00, w01 = (torch.cat(group) for group in zip(*of_scalars, strict=True))
        s = s + w00.t() @ (a0 * x0)
        v = v + (w01.t() @ x0)[:, None] * a1
    of_vectors = [(x[rows], *weights) for rows, (_, dim), weights in parts if dim == 3]
    if of_vectors:
        x1, w11, w10 = (torch.cat(group) for group in zip(*of_vectors, strict=True))
        dots = (x1.unflatten(0, (-1, 3)) * (a1 / ROOT_3)).sum(1)
        s = s + w11.t() @ dots
        v = v + a0 * mix(w10, x1)
    return torch.cat([s, v.flatten(0, 1)])


def mix(weight: Tensor, vectors: Tensor) -> Tensor:
    """weight (m, k), vectors (3 m, rows) -> (k, 3, rows)."""
    m, k = weight.shape
    return (weight.t() @ vectors.reshape(m, 3 * vectors.shape[1])).view(k, 3, vectors.shape[1])


def dot_into(out: Tensor, vectors: Tensor, vector: Tensor) -> Tensor:
    """vectors (m, 3, rows), vector (3, rows) -> their dot products, in out (m, rows)."""
    torch.mul(vectors[:, 0], vector[0], out=out)
    return out.addcmul_(vectors[:, 1], vector[1]).addcmul_(vectors[:, 2], vector[2])


class CoupleByHand(torch.autograd.Function):
    """`couple` with its derivative written out, for training.

    With ``constant`` (a float) the attribute's scalar is that number everywhere and its row is not read. Derivatives with
    respect to the attributes, and derivatives of derivatives, are taken from `couple`; forward mode is not supported.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        attributes: Tensor,
        weight: Tensor,
        bias: Tensor,
        slots: Slots,
        constant: float | None = None,
    ) -> Tensor:
        x = x.contiguous()
        columns = x.shape[1]
        a0, a1 = attributes[0], attributes[1:]
        a1_scaled = a1 / ROOT_3
        out = x.new_empty(slots.scalars + 3 * slots.vectors, columns)
        v = out[slots.scalars :].view(slots.vectors, 3, columns)
        # what the scalars are mixed from: the scalar slots as they are, the vector slots as dot products
        z = x.new_empty(sum(mul for mul, _ in slots.inputs), columns)
        t: Tensor | None = None
        v_written = False
        start = 0
        for rows, (mul, dim), (_, w_v) in zip(slots.rows(), slots.inputs, slots.weights(weight), strict=True):
            here, part = z[start : start + mul], x[rows]
            start += mul
            if dim == 1:
                here.copy_(part) if constant is not None else torch.mul(part, a0, out=here)
                t = w_v.t() @ part if t is None else t.addmm_(w_v.t(), part)
            else:
                dot_into(here, part.view(mul, 3, columns), a1_scaled)
                w_v = w_v if constant is None else w_v * constant
                flat, vectors = v.view(slots.vectors, 3 * columns), part.view(mul, 3 * columns)
                flat.addmm_(w_v.t(), vectors) if v_written else torch.mm(w_v.t(), vectors, out=flat)
                v_written = True
        torch.addmm(bias[:, None], scalar_weight(weight, slots, constant).t(), z, out=out[: slots.scalars])
        if not v_written:
            v.zero_()
        elif constant is None:
            v.mul_(a0)
        if t is not None:
            v.addcmul_(t[:, None], a1)
        ctx.save_for_backward(x, attributes, weight, bias, z)
        ctx.slots, ctx.constant = slots, constant
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, attributes, weight, bias, z = ctx.saved_tensors
        slots, constant = ctx.slots, ctx.constant
        if torch.is_grad_enabled() or ctx.needs_input_grad[1]:

            def formula(x: Tensor, attributes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                if constant is not None:
                    attributes = torch.cat([torch.full_like(attributes[:1], constant), attributes[1:]])
                return couple(x, attributes, weight, bias, slots)

            return *gradients(formula, (x, attributes, weight, bias), ctx.needs_input_grad, grad), None, None

        columns = x.shape[1]
        grad = grad.contiguous()
        a0, a1 = attributes[0], attributes[1:]
        a1_scaled = a1 / ROOT_3
        grad_s, grad_v = grad[: slots.scalars], grad[slots.scalars :].view(slots.vectors, 3, columns)
        grad_t = dot_into(x.new_empty(slots.vectors, columns), grad_v, a1)
        grad_mixed = (grad_v if constant is not None else grad_v * a0).view(slots.vectors, 3 * columns)
        grad_z = scalar_weight(weight, slots, constant) @ grad_s
        grad_w_z = z @ grad_s.t()
        grad_x = torch.empty_like(x)
        grad_weight = torch.empty_like(weight)
        start = 0
        for rows, (mul, dim), (_, w_v), (g_s, g_v) in zip(
            slots.rows(), slots.inputs, slots.weights(weight), slots.weights(grad_weight), strict=True
        ):
            here, part, grad_here = grad_x[rows], x[rows], grad_z[start : start + mul]
            g_s.copy_(grad_w_z[start : start + mul])
            start += mul
            if dim == 1:
                torch.mm(w_v, grad_t, out=here)
                here.add_(grad_here) if constant is not None else here.addcmul_(grad_here, a0)
                torch.mm(part, grad_t.t(), out=g_v)
                if constant is not None:
                    g_s.mul_(constant)
            else:
                w_v = w_v if constant is None else w_v * constant
                torch.mm(w_v, grad_mixed, out=here.view(mul, 3 * columns))
                here.view(mul, 3, columns).addcmul_(grad_here[:, None], a1_scaled)
                torch.mm(part.view(mul, 3 * columns), grad_mixed.t(), out=g_v)
                if constant is not None:
                    g_v.mul_(constant)
        return grad_x, None, grad_weight, grad_s.sum(1), None, None


def scalar_weight(weight: Tensor, slots: Slots, constant: float | None) -> Tensor:
    """W00 and W11 one below the other in the order of the slots; W00 times the constant, where there is one."""
    blocks = []
    for (_, dim), (w_s, _) in zip(slots.inputs, slots.weights(weight), strict=True):
        blocks.append(w_s * constant if dim == 1 and constant is not None else w_s)
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def gradients(
    formula: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Vector-Jacobian product of a formula by autograd, itself differentiable where gradients are recorded."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # without a graph to be made, the inputs' own history must not be walked
        inputs = [x if create_graph else x.detach().requires_grad_() for x in inputs]
        wanted = [x for x, need in zip(inputs, needed, strict=False) if need]
        found = iter(torch.autograd.grad(formula(*inputs), wanted, grad, create_graph=create_graph))
    return tuple(next(found) if need else None for _, need in zip(inputs, needed, strict=False))
