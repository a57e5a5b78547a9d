"""The form behind depth-wise products: linear in each of its four arguments, so that it is its own derivative.

For features x, couplings a and weights r of every edge (see `depthwise`), and a fourth argument g in the shape of the product,

    F(x, a, r, g) = sum_paths sum_umk x_um a^path_mk r^path_u g^path_uk         (for every edge; without weights r is 1)

The product is dF/dg, its derivatives are dF/dx, dF/da and dF/dr, and theirs are these four again with one argument in the place
of another. So one function, `Partial`, has derivatives of every order, as training with forces needs them.

All arguments are stored (..., edges), so that operations run along contiguous rows, and results are written where they belong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

X, A, R, G = range(4)


class Path(NamedTuple):
    """One path from a slot: its columns k among the slot's, rows of its weights, rows of the product."""

    columns: slice
    weights: slice
    out: slice


class Slot(NamedTuple):
    """All paths from one irrep of the features: rows of x as (mul, d_in), rows of a as (d_in, columns)."""

    x: slice
    mul: int
    d_in: int
    a: slice
    columns: int
    paths: tuple[Path, ...]


class Form(NamedTuple):
    """The sizes of F: slots, and the numbers of rows of x, a, r and g."""

    slots: tuple[Slot, ...]
    rows: tuple[int, int, int, int]


def _couple(slot: Slot, x: Tensor, a: Tensor) -> Tensor:
    """sum_m x_um a_mk: (mul, columns, edges)."""
    xs, couplings = x[slot.x].unflatten(0, (slot.mul, -1)), a[slot.a].unflatten(0, (slot.d_in, -1))
    out = xs[:, 0, None] * couplings[0]
    for m in range(1, slot.d_in):
        out.addcmul_(xs[:, m, None], couplings[m])
    return out


def _weighted(slot: Slot, r: Tensor | None, g: Tensor) -> Tensor:
    """r_u g_uk of all the slot's paths side by side: (mul, columns, edges)."""
    out = g.new_empty(slot.mul, slot.columns, g.shape[1])
    for path in slot.paths:
        into, part = out[:, path.columns], g[path.out].unflatten(0, (slot.mul, -1))
        if r is None:
            into.copy_(part)
        else:
            torch.mul(part, r[path.weights, None], out=into)
    return out


def _partial_x(form: Form, a: Tensor, r: Tensor | None, g: Tensor) -> Tensor:
    out = g.new_zeros(form.rows[X], g.shape[1])
    for slot in form.slots:
        into, couplings = out[slot.x].unflatten(0, (slot.mul, -1)), a[slot.a].unflatten(0, (slot.d_in, -1))
        weighted = _weighted(slot, r, g)
        for k in range(slot.columns):
            into.addcmul_(weighted[:, k, None], couplings[:, k])
    return out


def _partial_a(form: Form, x: Tensor, r: Tensor | None, g: Tensor) -> Tensor:
    out = g.new_zeros(form.rows[A], g.shape[1])
    for slot in form.slots:
        into, xs = out[slot.a].unflatten(0, (slot.d_in, -1)), x[slot.x].unflatten(0, (slot.mul, -1))
        weighted = _weighted(slot, r, g)
        for u in range(slot.mul):
            into.addcmul_(xs[u, :, None], weighted[u])
    return out


def _partial_r(form: Form, x: Tensor, a: Tensor, g: Tensor) -> Tensor:
    out = g.new_empty(form.rows[R], g.shape[1])
    for slot in form.slots:
        coupled = _couple(slot, x, a)
        for path in slot.paths:
            into, part, z = (
                out[path.weights],
                g[path.out].unflatten(0, (slot.mul, -1)),
                coupled[:, path.columns],
            )
            torch.mul(part[:, 0], z[:, 0], out=into)
            for k in range(1, part.shape[1]):
                into.addcmul_(part[:, k], z[:, k])
    return out


def _partial_g(form: Form, x: Tensor, a: Tensor, r: Tensor | None) -> Tensor:
    out = x.new_empty(form.rows[G], x.shape[1])
    for slot in form.slots:
        coupled = _couple(slot, x, a)
        for path in slot.paths:
            into, z = out[path.out].unflatten(0, (slot.mul, -1)), coupled[:, path.columns]
            if r is None:
                into.copy_(z)
            else:
                torch.mul(z, r[path.weights, None], out=into)
    return out


class Partial(torch.autograd.Function):
    """The derivative of a form by one of its arguments; the argument itself is not read, and given as None.

    ``apply(which, form, x, a, r, g)``; r is None for a form without weights.
    """

    @staticmethod
    def forward(which: int, form: Form, *arguments: Tensor | None) -> Tensor:
        x, a, r, g = (None if t is None else t.contiguous() for t in arguments)
        if which == X and a is not None and g is not None:
            return _partial_x(form, a, r, g)
        if which == A and x is not None and g is not None:
            return _partial_a(form, x, r, g)
        if which == R and x is not None and a is not None and g is not None:
            return _partial_r(form, x, a, g)
        if which == G and x is not None and a is not None:
            return _partial_g(form, x, a, r)
        raise ValueError(f"Partial: an argument that derivative {which} reads is missing")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.which, ctx.form, *arguments = inputs
        ctx.save_for_backward(*arguments)
        ctx.save_for_forward(*arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        arguments = list(ctx.saved_tensors)
        arguments[ctx.which] = grad
        return (
            None,
            None,
            *(
                Partial.apply(i, ctx.form, *arguments[:i], None, *arguments[i + 1 :]) if needed else None
                for i, needed in enumerate(ctx.needs_input_grad[2:])
            ),
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        moved: Tensor | None = None
        saved = ctx.saved_tensors
        for i, tangent in enumerate(tangents[2:]):
            if tangent is not None:
                arguments = [*saved[:i], tangent, *saved[i + 1 :]]
                part: Tensor = Partial.apply(ctx.which, ctx.form, *arguments)
                moved = part if moved is None else moved + part
        return moved


def product(form: Form, x: Tensor, a: Tensor, r: Tensor | None) -> Tensor:
    """dF/dg: rows of x, a, r -> rows of g; in ordinary operations for the compiler."""
    if not torch.compiler.is_compiling():
        out: Tensor = Partial.apply(G, form, x, a, r, None)
        return out
    parts: list[tuple[int, Tensor]] = []
    for slot in form.slots:
        xs, couplings = x[slot.x].unflatten(0, (slot.mul, -1)), a[slot.a].unflatten(0, (slot.d_in, -1))
        coupled = torch.einsum("ume,mke->uke", xs, couplings)
        for path in slot.paths:
            z = coupled[:, path.columns]
            parts.append((path.out.start, (z if r is None else z * r[path.weights, None]).flatten(0, 1)))
    return torch.cat([part for _, part in sorted(parts, key=lambda pair: pair[0])])
