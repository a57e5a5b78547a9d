"""Depth-wise tensor products of features with the spherical harmonics of edges.

Channel u of a feature is multiplied with the edge's Y alone, path by path,

    out^path_u = c_path R^path_u (x_u (x) Y)_path,    c_path = sqrt(2 l_out + 1)

(Liao and Smidt, arXiv 2206.11990, section 4.2; radial weights R of every path and channel). What depends on the edge alone,

    A^path_mk = c_path sum_n w3j_mnk Y_n,

is the same for all channels and blocks and made once (`Couplings`); products are then sums over m of x_um A_mk.
Everything is stored (..., edges): operations run along contiguous rows.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax.models.exact import Exact

Couplings = dict[str, Tensor]


class Contract(torch.autograd.Function):
    """x (u, m, rows), a (m, k, rows) -> sum_m x_um a_mk (u, k, rows); with `Outer`, its own derivatives of every order."""

    @staticmethod
    def forward(x: Tensor, a: Tensor) -> Tensor:
        out = x[:, 0, None] * a[0]
        for m in range(1, x.shape[1]):
            out.addcmul_(x[:, m, None], a[m])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, a = ctx.saved_tensors
        return (
            Contract.apply(grad, a.transpose(0, 1)) if ctx.needs_input_grad[0] else None,
            Outer.apply(x, grad) if ctx.needs_input_grad[1] else None,
        )


class Outer(torch.autograd.Function):
    """x (u, m, rows), y (u, k, rows) -> sum_u x_um y_uk (m, k, rows)."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        out = x[0, :, None] * y[0]
        for u in range(1, x.shape[0]):
            out.addcmul_(x[u, :, None], y[u])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        return (
            Contract.apply(y, grad.transpose(0, 1)) if ctx.needs_input_grad[0] else None,
            Contract.apply(x, grad) if ctx.needs_input_grad[1] else None,
        )


class DepthwiseProduct(nn.Module):
    """All paths from features and spherical harmonics to irreps that are wanted, channel by channel.

    Args:
        features: irreps of the features, one slot for each irrep.
        harmonics: irreps of the spherical harmonics, each once.
        wanted: irreps whose kinds may come out.

    Attributes:
        irreps_out: of the product, one slot for each irrep, channels in the order of the paths.
        weight_numel: number of radial weights of one edge.

    Raises:
        RepresentationError: an irrep in two slots, or nothing that comes out.
    """

    def __init__(self, features: o3.Irreps, harmonics: o3.Irreps, wanted: o3.Irreps) -> None:
        super().__init__()
        self.irreps_in, self.harmonics = o3.Irreps(features), o3.Irreps(harmonics)
        if len({ir for _, ir in self.irreps_in}) < len(self.irreps_in):
            raise RepresentationError(
                f"DepthwiseProduct: {self.irreps_in} has one irrep in two slots; simplify it first"
            )
        kinds = sorted({ir for _, ir in wanted})
        self.in_slots = [(str(ir), mul, ir.dim) for mul, ir in self.irreps_in]
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
        self.order = sorted(range(len(self.paths)), key=lambda p: (self.paths[p][2], p))
        self.muls = [self.irreps_in[i].mul for i, _, _ in self.paths]
        self.irreps_out = o3.Irreps([(self.muls[p], self.paths[p][2]) for p in self.order]).simplify()
        self.weight_numel = sum(self.muls)
        self.tables = {name: Exact(self._table(i)) for i, (name, _, _) in enumerate(self.in_slots)}

    def _table(self, slot: int) -> Tensor:
        """(d_in, sum over paths of d_out, harmonics.dim): c_path w3j of one input slot."""
        ir_in, slices = self.irreps_in[slot].ir, self.harmonics.slices()
        blocks = []
        for _, n, ir in (path for path in self.paths if path[0] == slot):
            block = torch.zeros(ir_in.dim, ir.dim, self.harmonics.dim, dtype=torch.float64)
            symbols = o3.wigner_3j(ir_in.l, self.harmonics[n].ir.l, ir.l, dtype=torch.float64)
            block[:, :, slices[n]] = sqrt(ir.dim) * symbols.transpose(1, 2)
            blocks.append(block)
        return torch.cat(blocks, dim=1)

    def couplings(self, harmonics: Tensor) -> Couplings:
        """A of every input irrep, (d_in, sum of d_out, edges), from Y (harmonics.dim, edges)."""
        return {
            name: (table.like(harmonics).flatten(0, 1) @ harmonics).unflatten(0, table.value.shape[:2])
            for name, table in self.tables.items()
        }

    def forward(self, x: Tensor, couplings: Couplings, weights: Tensor | None = None) -> Tensor:
        """x (edges, irreps_in.dim), weights (weight_numel, edges) or None for ones -> (edges, irreps_out.dim)."""
        rows = x.shape[0]
        parts = x.t().split_with_sizes([mul * dim for _, mul, dim in self.in_slots])
        factors = None if weights is None else weights.split_with_sizes(self.muls)
        outs: list[Tensor] = []
        for i, (part, (name, mul, dim)) in enumerate(zip(parts, self.in_slots, strict=True)):
            sizes = [ir.dim for j, _, ir in self.paths if j == i]
            if sizes:
                z = _contract(part.reshape(mul, dim, rows), couplings[name])
                outs.extend(z.split_with_sizes(sizes, dim=1))
        if factors is not None:
            outs = [z * factor[:, None] for z, factor in zip(outs, factors, strict=True)]
        return torch.cat([outs[p].reshape(-1, rows) for p in self.order]).t()


def _contract(x: Tensor, a: Tensor) -> Tensor:
    """`Contract`; in ordinary operations for the compiler, and for `torch.func` and forward mode in evaluation."""
    if torch.compiler.is_compiling():
        return torch.einsum("ume,mke->uke", x, a)
    out: Tensor = Contract.apply(x, a)
    return out
