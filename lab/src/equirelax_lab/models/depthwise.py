"""Depth-wise tensor products of features with the spherical harmonics of edges.

Channel u of a feature is multiplied with the edge's Y alone, path by path,

    out^path_u = c_path R^path_u (x_u (x) Y)_path,    c_path = sqrt(2 l_out + 1)

(Liao and Smidt, arXiv 2206.11990, section 4.2; radial weights R of every path and channel). What depends on the edge alone,

    A^path_mk = c_path sum_n w3j_mnk Y_n,

is the same for all channels and blocks and made once; products are then sums over m of x_um A_mk (`coupling_form`).
"""

from __future__ import annotations

from itertools import accumulate
from math import sqrt

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.coupling_form import Form, Path, Slot, product
from equirelax_lab.models.exact import Exact


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
        """Where everything stands in x, a, r and g; ``order`` is that of the paths in the product."""
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
        """A of all paths, one row for each m and k, from Y (harmonics.dim, edges): (rows, edges)."""
        return self.table.like(harmonics) @ harmonics

    def forward(self, x: Tensor, couplings: Tensor, weights: Tensor | None = None) -> Tensor:
        """x (edges, irreps_in.dim), couplings as made by the method, weights (weight_numel, edges) or None for ones ->
        (edges, irreps_out.dim).

        Raises:
            RepresentationError: features, couplings or weights of another product.
        """
        given = (x.shape[1], couplings.shape[0], self.weight_numel if weights is None else weights.shape[0])
        if given != self.form.rows[:3]:
            raise RepresentationError(
                f"DepthwiseProduct: expected {self.form.rows[:3]} features, couplings and weights for each edge, got "
                f"{given}; couplings must come from this product's own `couplings`, or that of an equal one"
            )
        return product(self.form, x.t(), couplings, weights).t()


def _slices(sizes: list[int]) -> list[slice]:
    """Slices of these sizes, one after another."""
    ends = list(accumulate(sizes))
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
