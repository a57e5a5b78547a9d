"""Weighted tensor product of features with attributes: the only linear map of a steerable network.

For features x with irreps ``irreps_in1`` and attributes a with irreps ``irreps_in2`` (steerable network: spherical
harmonics of an edge or a node),

    out_{w k} = sum_paths  c_path  sum_{u v i j}  W^path_{u v w}  w3j_{i j k}  x_{u i}  a_{v j}  (+ bias_w for 0e outputs)

with e3nn's real Wigner 3j symbols. ``c_path = sqrt(2 l_out + 1)``: e3nn's ``component`` irrep normalisation with the path
normalisation undone, so that weights drawn from +-1/sqrt(fan-in) give unit variance, as a dense layer's would
(Brandstetter et al., "Geometric and physical quantities improve E(3) equivariant message passing", 2022, appendix C).
"""

from __future__ import annotations

from functools import lru_cache
from math import prod, sqrt
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax.errors import RepresentationError


class Instruction(NamedTuple):
    """One path of the product; the fields are those of ``e3nn.o3.Instruction``."""

    i_in1: int
    i_in2: int
    i_out: int
    connection_mode: str
    has_weight: bool
    path_weight: float
    path_shape: tuple[int, int, int]


@lru_cache(maxsize=256)
def wigner_3j(l1: int, l2: int, l3: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """e3nn's Wigner 3j symbols (2 l1 + 1, 2 l2 + 1, 2 l3 + 1), computed in float64 whatever the default dtype, then cast."""
    return o3.wigner_3j(l1, l2, l3, dtype=torch.float64).to(dtype=dtype, device=device)


def fully_connected_instructions(
    irreps_in1: o3.Irreps, irreps_in2: o3.Irreps, irreps_out: o3.Irreps
) -> list[Instruction]:
    """All allowed paths, in the order of ``e3nn.o3.FullyConnectedTensorProduct``."""
    return [
        Instruction(i, j, k, "uvw", True, sqrt(out.ir.dim), (in1.mul, in2.mul, out.mul))
        for i, in1 in enumerate(irreps_in1)
        for j, in2 in enumerate(irreps_in2)
        for k, out in enumerate(irreps_out)
        if out.ir in in1.ir * in2.ir
    ]


class TensorProduct(nn.Module):
    """Fully connected tensor product with biases on its 0e outputs; see the module's docstring for the equation.

    It has the attributes of ``e3nn.o3.FullyConnectedTensorProduct``: ``irreps_in1``, ``irreps_in2``, ``irreps_out``,
    ``instructions`` (``i_in1, i_in2, i_out, connection_mode, has_weight, path_weight, path_shape``), and one flat ``weight`` holding the
    paths' (mul_in1, mul_in2, mul_out) arrays one after another in the order of ``instructions``; ``path_weight`` is c_path, all normalisation
    included. ``bias`` (number of 0e outputs,) belongs to the 0e slots of ``irreps_out`` in order.

    Where everything has l <= 1 and the attributes are one 0e and one 1o, channels are mixed by three matrix
    products; otherwise path by path. Both work on transposed features (dim, rows): a slot (mul, 2 l + 1, rows) is then
    a matrix (mul, (2 l + 1) rows), so that no product needs a copy. Outputs have strides (1, rows).
    """

    def __init__(
        self, irreps_in1: str | o3.Irreps, irreps_in2: str | o3.Irreps, irreps_out: str | o3.Irreps
    ) -> None:
        super().__init__()
        self.irreps_in1 = o3.Irreps(irreps_in1)
        self.irreps_in2 = o3.Irreps(irreps_in2)
        self.irreps_out = o3.Irreps(irreps_out)
        self.instructions = fully_connected_instructions(self.irreps_in1, self.irreps_in2, self.irreps_out)
        reached = {ins.i_out for ins in self.instructions}
        for k, out in enumerate(self.irreps_out):
            if k not in reached and out.mul > 0:
                raise RepresentationError(
                    f"TensorProduct: no path of {self.irreps_in1} x {self.irreps_in2} leads to {out} (slot {k} of "
                    f"{self.irreps_out}); leave it out of irreps_out, or add a path to it"
                )
        self.weight_numel = sum(prod(ins.path_shape) for ins in self.instructions)
        self.weight = nn.Parameter(torch.empty(self.weight_numel))
        self.bias = nn.Parameter(torch.empty(sum(out.mul for out in self.irreps_out if out.ir == o3.Irrep("0e"))))
        self.reset_parameters()

    def fan_in(self, i_out: int) -> int:
        """Number of weights that reach one channel of output slot ``i_out``."""
        return sum(ins.path_shape[0] * ins.path_shape[1] for ins in self.instructions if ins.i_out == i_out)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights and biases uniform in +-1/sqrt(fan-in of their output slot)."""
        for ins, view in zip(self.instructions, self.weight_views(), strict=True):
            bound = 1 / sqrt(self.fan_in(ins.i_out))
            view.uniform_(-bound, bound, generator=generator)
        start = 0
        for k, out in enumerate(self.irreps_out):
            if out.ir == o3.Irrep("0e") and out.mul > 0:
                bound = 1 / sqrt(self.fan_in(k))
                self.bias[start : start + out.mul].uniform_(-bound, bound, generator=generator)
                start += out.mul

    def weight_views(self) -> list[Tensor]:
        """Views of ``weight``, one (mul_in1, mul_in2, mul_out) array for each instruction."""
        parts = self.weight.split([prod(ins.path_shape) for ins in self.instructions])
        return [part.view(ins.path_shape) for part, ins in zip(parts, self.instructions, strict=True)]

    def linear_matrix(self, attributes: Tensor) -> Tensor:
        """Dense matrix (irreps_out.dim, irreps_in1.dim) of x -> self(x, attributes) without bias, for one row of attributes (dim,)."""
        matrix = attributes.new_zeros(self.irreps_out.dim, self.irreps_in1.dim)
        slices1, slices2, slices_out = (i.slices() for i in (self.irreps_in1, self.irreps_in2, self.irreps_out))
        for ins, weight in zip(self.instructions, self.weight_views(), strict=True):
            ir1, ir2, ir_out = self._irreps_of(ins)
            w3j = wigner_3j(ir1.l, ir2.l, ir_out.l, attributes.dtype, attributes.device)
            a = attributes[slices2[ins.i_in2]].view(-1, ir2.dim)
            block = ins.path_weight * torch.einsum("uvw,vj,ijk->wkui", weight, a, w3j)
            rows, columns = slices_out[ins.i_out], slices1[ins.i_in1]
            matrix[rows, columns] += block.reshape(rows.stop - rows.start, columns.stop - columns.start)
        return matrix

    def forward(self, x: Tensor, attributes: Tensor) -> Tensor:
        """x (rows, irreps_in1.dim), attributes (rows, irreps_in2.dim) -> (rows, irreps_out.dim)."""
        if x.shape[-1] != self.irreps_in1.dim or attributes.shape[-1] != self.irreps_in2.dim:
            raise RepresentationError(
                f"TensorProduct: got features {tuple(x.shape)} and attributes {tuple(attributes.shape)}; expected last "
                f"axes {self.irreps_in1.dim} ({self.irreps_in1}) and {self.irreps_in2.dim} ({self.irreps_in2})"
            )
        return self.generic(x, attributes)

    def generic(self, x: Tensor, attributes: Tensor) -> Tensor:
        """The product path by path, for any irreps."""
        slots1 = x.split([mul_ir.dim for mul_ir in self.irreps_in1], dim=-1)
        slots2 = attributes.split([mul_ir.dim for mul_ir in self.irreps_in2], dim=-1)
        out: list[Tensor | None] = [None] * len(self.irreps_out)
        for ins, weight in zip(self.instructions, self.weight_views(), strict=True):
            ir1, ir2, ir_out = self._irreps_of(ins)
            mul1, mul2, _ = ins.path_shape
            w3j = wigner_3j(ir1.l, ir2.l, ir_out.l, x.dtype, x.device)
            x1 = slots1[ins.i_in1].reshape(-1, mul1, ir1.dim)
            a = slots2[ins.i_in2].reshape(-1, mul2, ir2.dim)
            term = ins.path_weight * torch.einsum("zui,zvj,ijk,uvw->zwk", x1, a, w3j, weight).flatten(1)
            previous = out[ins.i_out]
            out[ins.i_out] = term if previous is None else previous + term
        start = 0
        parts: list[Tensor] = []
        for mul_ir, part in zip(self.irreps_out, out, strict=True):
            if part is None:
                continue
            if mul_ir.ir == o3.Irrep("0e"):
                part = part + self.bias[start : start + mul_ir.mul]
                start += mul_ir.mul
            parts.append(part)
        return torch.cat(parts, dim=-1)

    def _irreps_of(self, ins: Instruction) -> tuple[o3.Irrep, o3.Irrep, o3.Irrep]:
        return (
            self.irreps_in1[ins.i_in1].ir,
            self.irreps_in2[ins.i_in2].ir,
            self.irreps_out[ins.i_out].ir,
        )

    def extra_repr(self) -> str:
        return f"{self.irreps_in1} x {self.irreps_in2} -> {self.irreps_out}, {self.weight_numel} weights"
