"""Depth-wise tensor products of features with the spherical harmonics of edges.

Each channel u of a feature is multiplied separately with the edge's Y, path by path,

    out^path_u = c_path R^path_u (x_u (x) Y)_path,    c_path = sqrt(2 l_out + 1)

(Liao and Smidt, arXiv 2206.11990, section 4.2; radial weights R of every path and channel). The part that depends only on the
edge,

    A^path_mk = c_path sum_n w3j_mnk Y_n,

is the same for all channels and blocks and computed once. Products are then sums over m of x_um A_mk.

They derive from a form that is linear in each of its four arguments: for features x, couplings a and weights r of every edge, and
a fourth argument g in the shape of the product,

    F(x, a, r, g) = sum_paths sum_umk x_um a^path_mk r^path_u g^path_uk         (for every edge; without weights r is 1)

The product is dF/dg, its derivatives are dF/dx, dF/da and dF/dr, and theirs are these four again with one argument replaced by
another. One function therefore has derivatives of every order, as needed for training with forces. All arguments are
stored (..., edges), so that operations run along contiguous rows, and results are written directly to their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import sqrt
from typing import Any, NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.exact import Exact
from equirelax_lab.models.fast.switch import needs_ordinary

X, A, R, G = range(4)


class Path(NamedTuple):
    """One path from a slot: its columns k among those of the slot, the rows of its weights, and its rows in the product."""

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
    """Compute sum_m x_um a_mk: (mul, columns, edges)."""
    xs, couplings = x[slot.x].unflatten(0, (slot.mul, -1)), a[slot.a].unflatten(0, (slot.d_in, -1))
    out = xs[:, 0, None] * couplings[0]
    for m in range(1, slot.d_in):
        out.addcmul_(xs[:, m, None], couplings[m])
    return out


def _weighted(slot: Slot, r: Tensor | None, g: Tensor) -> Tensor:
    """Compute r_u g_uk of all the slot's paths side by side: (mul, columns, edges)."""
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


class _Partial(torch.autograd.Function):
    """`partial` in few operations; its derivative is `partial` again."""

    @staticmethod
    def forward(ctx: Any, which: int, form: Form, *arguments: Tensor | None) -> Tensor:
        ctx.which, ctx.form = which, form
        ctx.save_for_backward(*arguments)
        x, a, r, g = (None if t is None else t.contiguous() for t in arguments)
        if which == X and a is not None and g is not None:
            return _partial_x(form, a, r, g)
        if which == A and x is not None and g is not None:
            return _partial_a(form, x, r, g)
        if which == R and x is not None and a is not None and g is not None:
            return _partial_r(form, x, a, g)
        if which == G and x is not None and a is not None:
            return _partial_g(form, x, a, r)
        raise ValueError(f"partial: an argument that derivative {which} reads is missing")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        arguments = list(ctx.saved_tensors)
        arguments[ctx.which] = grad
        found = [
            partial(i, ctx.form, *arguments[:i], None, *arguments[i + 1 :]) if needed else None
            for i, needed in enumerate(ctx.needs_input_grad[2:])
        ]
        return None, None, *found


def partial(which: int, form: Form, *arguments: Tensor | None) -> Tensor:
    """Compute the derivative of a form by one of its arguments x, a, r, g.

    Args:
        which: X, A, R or G.
        form: Its sizes.
        arguments: x, a, r and g, each (rows, edges). The argument of the derivative is not read, and may be None; r is
            None for a form without weights.

    Returns:
        As many rows as the argument has, (rows, edges).
    """
    if needs_ordinary(*arguments):
        return _ordinary(which, form, *arguments)
    out: Tensor = _Partial.apply(which, form, *arguments)
    return out


def _ordinary(which: int, form: Form, *arguments: Tensor | None) -> Tensor:
    """`partial` path by path in ordinary operations of torch."""
    given = [t for i, t in enumerate(arguments) if t is not None and i != which]
    edges = given[-1].shape[-1]
    letters = ("ume", "mke", "ue", "uke")
    parts: list[tuple[int, Tensor]] = []
    for slot in form.slots:
        of_slot: list[Tensor] = []
        for path in slot.paths:
            views = _views(slot, path, arguments)
            read = [i for i in range(4) if i != which and views[i] is not None]
            equation = ",".join(letters[i] for i in read) + "->" + letters[which]
            part = torch.einsum(equation, *(views[i] for i in read))
            if which in (X, A):
                of_slot.append(part)
            else:
                start = (path.weights if which == R else path.out).start
                parts.append((start, part.reshape(-1, edges)))
        if which == X and of_slot:
            parts.append((slot.x.start, sum(of_slot[1:], of_slot[0]).reshape(-1, edges)))
        elif which == X:
            parts.append((slot.x.start, given[-1].new_zeros(slot.mul * slot.d_in, edges)))
        elif which == A and of_slot:
            parts.append((slot.a.start, torch.cat(of_slot, dim=1).reshape(-1, edges)))
    return torch.cat([part for _, part in sorted(parts, key=lambda pair: pair[0])])


def _views(slot: Slot, path: Path, arguments: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The parts that a path reads of x (mul, d_in, edges), a (d_in, columns, edges), r (mul, edges), g (mul, columns, edges)."""
    x, a, r, g = arguments
    edges = next(t for t in arguments if t is not None).shape[-1]
    return [
        None if x is None else x[slot.x].reshape(slot.mul, -1, edges),
        None if a is None else a[slot.a].reshape(slot.d_in, slot.columns, edges)[:, path.columns],
        None if r is None else r[path.weights],
        None if g is None else g[path.out].reshape(slot.mul, -1, edges),
    ]


class DepthwiseProduct(nn.Module):
    """All paths from features and spherical harmonics to the wanted irreps, channel by channel.

    Args:
        features: irreps of the features, one slot for each irrep.
        harmonics: irreps of the spherical harmonics, each once.
        wanted: irreps allowed in the output; multiplicities do not matter.

    Attributes:
        irreps_out: irreps of the product, one slot for each irrep, channels in the order of the paths.
        weight_numel: number of radial weights of one edge.

    Raises:
        RepresentationError: an irrep is in two slots, or no path leads to a wanted one.
    """

    def __init__(self, features: o3.Irreps, harmonics: o3.Irreps, wanted: o3.Irreps) -> None:
        super().__init__()
        self.irreps_in, self.harmonics = o3.Irreps(features), o3.Irreps(harmonics)
        if len({ir for _, ir in self.irreps_in}) < len(self.irreps_in):
            raise RepresentationError(
                f"DepthwiseProduct: {self.irreps_in} has one irrep in two slots; simplify it first"
            )
        kinds = sorted({ir for _, ir in wanted})
        # (input slot, harmonic, output irrep), input by input
        self.paths = [
            (i, n, ir)
            for i, (_, ir_in) in enumerate(self.irreps_in)
            for n, (_, ir_y) in enumerate(self.harmonics)
            for ir in kinds
            if ir in ir_in * ir_y
        ]
        if not self.paths:
            raise RepresentationError(
                f"DepthwiseProduct: no path of {self.irreps_in} x {self.harmonics} leads to {wanted}"
            )
        order = sorted(range(len(self.paths)), key=lambda p: (self.paths[p][2], p))
        muls = [self.irreps_in[i].mul for i, _, _ in self.paths]
        self.irreps_out = o3.Irreps([(muls[p], self.paths[p][2]) for p in order]).simplify()
        self.weight_numel = sum(muls)
        self.form = self._form(order)
        self.table = Exact(torch.cat([self._table(i) for i in range(len(self.irreps_in))]))

    def _form(self, order: list[int]) -> Form:
        """Build the form; `order` is that of the paths in the product."""
        muls = [self.irreps_in[i].mul for i, _, _ in self.paths]
        sizes = [mul * ir.dim for mul, (_, _, ir) in zip(muls, self.paths, strict=True)]
        in_product = _slices([sizes[p] for p in order])
        outs = {p: where for p, where in zip(order, in_product, strict=True)}
        weights = _slices(muls)
        slots, rows_a = [], 0
        for i, ((mul, ir), where) in enumerate(zip(self.irreps_in, self.irreps_in.slices(), strict=True)):
            mine = [p for p, path in enumerate(self.paths) if path[0] == i]
            columns = _slices([self.paths[p][2].dim for p in mine])
            width = sum(self.paths[p][2].dim for p in mine)
            paths = tuple(Path(k, weights[p], outs[p]) for k, p in zip(columns, mine, strict=True))
            slots.append(Slot(where, mul, ir.dim, slice(rows_a, rows_a + ir.dim * width), width, paths))
            rows_a += ir.dim * width
        return Form(tuple(slots), (self.irreps_in.dim, rows_a, sum(muls), sum(sizes)))

    def _table(self, slot: int) -> Tensor:
        """(d_in * columns, harmonics.dim): c_path w3j of one input slot."""
        ir_in, slices = self.irreps_in[slot].ir, self.harmonics.slices()
        blocks = [torch.zeros(ir_in.dim, 0, self.harmonics.dim, dtype=torch.float64)]
        for _, n, ir in (path for path in self.paths if path[0] == slot):
            block = torch.zeros(ir_in.dim, ir.dim, self.harmonics.dim, dtype=torch.float64)
            symbols = o3.wigner_3j(ir_in.l, self.harmonics[n].ir.l, ir.l, dtype=torch.float64)
            block[:, :, slices[n]] = sqrt(ir.dim) * symbols.transpose(1, 2)
            blocks.append(block)
        return torch.cat(blocks, dim=1).flatten(0, 1)

    def couplings(self, harmonics: Tensor) -> Tensor:
        """Compute A of all paths, one row for each m and k, from Y (harmonics.dim, edges): (rows, edges)."""
        return self.table.like(harmonics) @ harmonics

    def forward(self, x: Tensor, couplings: Tensor, weights: Tensor | None = None) -> Tensor:
        """x (edges, irreps_in.dim), couplings as made by the method, weights (weight_numel, edges) or None for ones ->
        (edges, irreps_out.dim).

        Raises:
            RepresentationError: features, couplings or weights do not belong to this product.
        """
        given = (x.shape[1], couplings.shape[0], self.weight_numel if weights is None else weights.shape[0])
        if given != self.form.rows[:3]:
            raise RepresentationError(
                f"DepthwiseProduct: expected {self.form.rows[:3]} features, couplings and weights for each edge, got "
                f"{given}; couplings must come from this product's own `couplings`, or that of an equal one"
            )
        return partial(G, self.form, x.t(), couplings, weights, None).t()


def _slices(sizes: list[int]) -> list[slice]:
    """Build slices of these sizes, one after another."""
    ends = list(accumulate(sizes))
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
