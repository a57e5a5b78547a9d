"""The tensor product of scalars and vectors with one scalar and one vector, as in networks of l <= 1.

Inputs are scalars x0 and vectors x1, attributes a scalar a0 and a vector a1. The fully connected tensor product has
only four paths. With their Wigner symbols and path weights written out they are

    scalars' = W00^T (a0 x0) + W11^T (x1 . a1) / sqrt(3) + bias
    vectors' = a0 (W10^T x1) + (W01^T x0) a1

Features are transposed, (dim, rows): a slot of vectors (mul, 3, rows) is then a matrix (mul, 3 rows), so that
channels are mixed by one matrix product, without a copy, and everything else runs along contiguous rows.

`couple` is the formula in ordinary operations. `Coupling` has the same values and derivatives with a third of the
operations: results are written directly to their place, and sums that autograd would make are accumulated in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from equirelax_lab.models.exact import Exact
from equirelax_lab.models.fast.by_hand import ByHand

ROOT_3 = sqrt(3)


class Slots(NamedTuple):
    """Sizes of the product: inputs (multiplicity, 1 for scalars or 3 for vectors), and numbers of output scalars and vectors."""

    inputs: tuple[tuple[int, int], ...]
    scalars: int
    vectors: int

    @property
    def sizes(self) -> list[int]:
        """Number of rows of the transposed features that each input slot takes."""
        return [mul * dim for mul, dim in self.inputs]

    @property
    def muls(self) -> list[int]:
        """Channels of each input slot."""
        return [mul for mul, _ in self.inputs]

    def weights(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return views of the flat weight: for each input slot (mul, scalars) and (mul, vectors).

        In e3nn's order of paths the attribute's scalar comes first; it leads from scalars to scalars and from vectors
        to vectors.
        """
        views, start = [], 0
        for mul, dim in self.inputs:
            sizes = (self.scalars, self.vectors) if dim == 1 else (self.vectors, self.scalars)
            parts = []
            for size in sizes:
                parts.append(flat[start : start + mul * size].view(mul, size))
                start += mul * size
            views.append((parts[0], parts[1]) if dim == 1 else (parts[1], parts[0]))
        return views


class WeightLayout:
    """Arranges a flat weight into the few matrices that a product needs, including factors, by one gather.

    Args:
        order: (numel,) long, the index of the weight at each place of the arranged one.
        factors: (numel,) float64, the factors that multiply it there.
    """

    def __init__(self, order: Tensor, factors: Tensor) -> None:
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        self._order, self._factors = Exact(order), Exact(factors)
        self._inverse, self._inverse_factors = Exact(inverse), Exact(factors[inverse])

    def arrange(self, weight: Tensor) -> Tensor:
        """Arrange a weight (numel,)."""
        return weight.index_select(0, self._order.like(weight)).mul_(self._factors.like(weight))

    def restore(self, gradient: Tensor) -> Tensor:
        """Compute the weight's gradient from that of the arranged weight."""
        return gradient.index_select(0, self._inverse.like(gradient)).mul_(
            self._inverse_factors.like(gradient)
        )


def couple(x: Tensor, attributes: Tensor, weight: Tensor, bias: Tensor, slots: Slots) -> Tensor:
    """Compute the product: x (dim, rows), attributes (4, rows), flat weight, bias (scalars,) -> (scalars + 3 vectors, rows)."""
    a0, a1 = attributes[:1], attributes[1:]
    parts = list(zip(x.split(slots.sizes), slots.inputs, slots.weights(weight), strict=True))
    s = bias[:, None].expand(-1, x.shape[1])
    v = x.new_zeros(slots.vectors, 3, x.shape[1])
    of_scalars = [(part, *weights) for part, (_, dim), weights in parts if dim == 1]
    if of_scalars:
        x0, w00, w01 = (torch.cat(group) for group in zip(*of_scalars, strict=True))
        s = s + w00.t() @ (a0 * x0)
        v = v + (w01.t() @ x0)[:, None] * a1
    of_vectors = [(part, *weights) for part, (_, dim), weights in parts if dim == 3]
    if of_vectors:
        x1, w11, w10 = (torch.cat(group) for group in zip(*of_vectors, strict=True))
        dots = (x1.unflatten(0, (-1, 3)) * (a1 / ROOT_3)).sum(1)
        s = s + w11.t() @ dots
        v = v + a0 * mix(w10, x1)
    return torch.cat([s, v.flatten(0, 1)])


def mix(weight: Tensor, vectors: Tensor) -> Tensor:
    """Mix the channels of vectors: weight (m, k), vectors (3 m, rows) -> (k, 3, rows)."""
    m, k = weight.shape
    return (weight.t() @ vectors.reshape(m, 3 * vectors.shape[1])).view(k, 3, vectors.shape[1])


def couple_layout(slots: Slots, constant: float = 1.0) -> WeightLayout:
    """Build the arrangement [W00 and W11 of all slots (channels, scalars)], then each slot's W01 or W10 (mul, vectors).

    Factors are included; `constant` multiplies the paths that read the attribute's scalar.
    """
    numel = sum(slots.muls) * (slots.scalars + slots.vectors)
    index = slots.weights(torch.arange(numel))
    order = [to_s for to_s, _ in index] + [to_v for _, to_v in index]
    dims = [dim for _, dim in slots.inputs]
    factors = [constant if dim == 1 else 1 / ROOT_3 for dim in dims] + [
        1.0 if dim == 1 else constant for dim in dims
    ]
    filled = [
        torch.full(o.shape, f, dtype=torch.float64).flatten() for o, f in zip(order, factors, strict=True)
    ]
    return WeightLayout(torch.cat([o.flatten() for o in order]), torch.cat(filled))


def dot_into(out: Tensor, vectors: Tensor, others: Tensor) -> Tensor:
    """Write dot products of vectors (m, 3, rows) with others (m or 1, 3, rows) into out (m, rows)."""
    x, y, z = vectors.unbind(1)
    a, b, c = others.unbind(1)
    torch.mul(x, a, out=out)
    return out.addcmul_(y, b).addcmul_(z, c)


def couple_forward(
    x: Tensor, a0: Tensor | None, a1: Tensor, weight: Tensor, bias: Tensor, slots: Slots
) -> tuple[Tensor, Tensor]:
    """Compute `couple` with an arranged weight, and z (channels, rows), from which the scalars are mixed.

    a0 is (rows,), or None if the weight contains it as a constant; a1 is (1, 3, rows).
    """
    columns, (_, n_s, n_v) = x.shape[1], slots
    muls = slots.muls
    channels = sum(muls)
    w_z, *w_v = weight.split_with_sizes([channels * n_s, *(mul * n_v for mul in muls)])
    out = x.new_empty(n_s + 3 * n_v, columns)
    s, v = out.split_with_sizes([n_s, 3 * n_v])
    v_flat, v = v.view(n_v, 3 * columns), v.view(n_v, 3, columns)
    z = x.new_empty(channels, columns)
    t: Tensor | None = None
    has_vectors = False
    slotwise = zip(x.split_with_sizes(slots.sizes), z.split_with_sizes(muls), w_v, slots.inputs, strict=True)
    for part, here, w, (mul, dim) in slotwise:
        w = w.view(mul, n_v).t()
        if dim == 1:
            here.copy_(part) if a0 is None else torch.mul(part, a0, out=here)
            t = w @ part if t is None else t.addmm_(w, part)
        else:
            dot_into(here, part.view(mul, 3, columns), a1)
            part = part.view(mul, 3 * columns)
            v_flat.addmm_(w, part) if has_vectors else torch.mm(w, part, out=v_flat)
            has_vectors = True
    torch.addmm(bias[:, None], w_z.view(channels, n_s).t(), z, out=s)
    if not has_vectors:
        v.zero_()
    elif a0 is not None:
        v.mul_(a0)
    if t is not None:
        v.addcmul_(t[:, None], a1)
    return out, z


def couple_backward(
    grad: Tensor, x: Tensor, z: Tensor, a0: Tensor | None, a1: Tensor, weight: Tensor, slots: Slots
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of features, arranged weight and bias."""
    columns, (_, n_s, n_v) = x.shape[1], slots
    muls = slots.muls
    channels = sum(muls)
    blocks = [channels * n_s, *(mul * n_v for mul in muls)]
    w_z, *w_v = weight.split_with_sizes(blocks)
    grad_weight = torch.empty_like(weight)
    g_z, *g_v = grad_weight.split_with_sizes(blocks)
    grad_s, grad_v = grad.split_with_sizes([n_s, 3 * n_v])
    grad_v = grad_v.view(n_v, 3, columns)
    grad_t = dot_into(x.new_empty(n_v, columns), grad_v, a1)
    grad_v = (grad_v if a0 is None else grad_v * a0).view(n_v, 3 * columns)
    grad_z = w_z.view(channels, n_s) @ grad_s
    torch.mm(z, grad_s.t(), out=g_z.view(channels, n_s))
    grad_x = torch.empty_like(x)
    parts = (
        x.split_with_sizes(slots.sizes),
        grad_x.split_with_sizes(slots.sizes),
        grad_z.split_with_sizes(muls),
    )
    for part, here, from_z, w, g, (mul, dim) in zip(*parts, w_v, g_v, slots.inputs, strict=True):
        w, g = w.view(mul, n_v), g.view(mul, n_v)
        if dim == 1:
            torch.mm(w, grad_t, out=here)
            here.add_(from_z) if a0 is None else here.addcmul_(from_z, a0)
            torch.mm(part, grad_t.t(), out=g)
        else:
            torch.mm(w, grad_v, out=here.view(mul, 3 * columns))
            here.view(mul, 3, columns).addcmul_(from_z[:, None], a1)
            torch.mm(part.view(mul, 3 * columns), grad_v.t(), out=g)
    return grad_x, grad_weight, grad_s.sum(1)


class Coupling(ByHand):
    """`couple`, with hand-written derivatives with respect to features, weight and bias.

    Args:
        slots: The product's sizes.
    """

    unwritten = (1,)

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.layout = couple_layout(slots)

    def formula(self, *inputs: Tensor) -> Tensor:
        x, attributes, weight, bias = inputs
        return couple(x, attributes, weight, bias, self.slots)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, attributes, weight, bias = inputs
        features, arranged = x.contiguous(), self.layout.arrange(weight)
        out, z = couple_forward(features, attributes[0], attributes[None, 1:], arranged, bias, self.slots)
        return out, (features, z, arranged)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor], saved: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        (_, attributes, _, _), (features, z, arranged) = inputs, saved
        a0, a1 = attributes[0], attributes[None, 1:]
        grad_x, grad_weight, grad_bias = couple_backward(
            grad.contiguous(), features, z, a0, a1, arranged, self.slots
        )
        return grad_x, None, self.layout.restore(grad_weight), grad_bias
