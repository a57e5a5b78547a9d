"""Weighted tensor product of features with attributes: the linear map of a steerable network.

For features x with irreps ``irreps_in1`` and attributes a with irreps ``irreps_in2`` (in a steerable network the
spherical harmonics of an edge or a node),

    out_wk = sum_paths c_path sum_uvij W^path_uvw w3j_ijk x_ui a_vj    (+ bias_w for 0e outputs)

with e3nn's real Wigner 3j symbols. ``c_path = sqrt(2 l_out + 1)``: e3nn's ``component`` irrep normalisation with its
path normalisation undone, so that weights drawn from +-1/sqrt(fan-in), as a dense layer's are, keep the variance
(Brandstetter et al., ICLR 2022, arXiv 2110.02905, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod, sqrt
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.fast import is_enabled
from equirelax_lab.models.fast.coupling import Coupling, Slots

SCALAR, VECTOR = o3.Irrep("0e"), o3.Irrep("1o")


class Instruction(NamedTuple):
    """One path of the product; the fields are those of ``e3nn.o3.Instruction``."""

    i_in1: int
    i_in2: int
    i_out: int
    connection_mode: str
    has_weight: bool
    path_weight: float
    path_shape: tuple[int, int, int]


def fully_connected_instructions(
    irreps_in1: o3.Irreps, irreps_in2: o3.Irreps, irreps_out: o3.Irreps
) -> list[Instruction]:
    """List all allowed paths, in the order of `e3nn.o3.FullyConnectedTensorProduct`."""
    return [
        Instruction(i, j, k, "uvw", True, sqrt(out.ir.dim), (in1.mul, in2.mul, out.mul))
        for i, in1 in enumerate(irreps_in1)
        for j, in2 in enumerate(irreps_in2)
        for k, out in enumerate(irreps_out)
        if out.ir in in1.ir * in2.ir
    ]


def vector_slots(irreps_in1: o3.Irreps, irreps_in2: o3.Irreps, irreps_out: o3.Irreps) -> Slots | None:
    """Return the sizes of a product of scalars (0e) and vectors (1o) with one of each, scalars first; None for any other."""
    if irreps_in2 != o3.Irreps("1x0e+1x1o") or any(ir not in (SCALAR, VECTOR) for _, ir in irreps_in1):
        return None
    if [ir for _, ir in irreps_out] not in ([SCALAR, VECTOR], [SCALAR], [VECTOR]):
        return None
    inputs = tuple((mul, ir.dim) for mul, ir in irreps_in1)
    return Slots(inputs, irreps_out.count(SCALAR), irreps_out.count(VECTOR))


class TensorProduct(nn.Module):
    """Fully connected tensor product with biases on its 0e outputs; see the module's docstring for the equation.

    It has the attributes of ``e3nn.o3.FullyConnectedTensorProduct``: ``irreps_in1``, ``irreps_in2``, ``irreps_out``,
    ``weight_numel``, ``instructions`` (``i_in1, i_in2, i_out, connection_mode, has_weight, path_weight, path_shape``)
    and one flat ``weight`` that holds the paths' (mul_in1, mul_in2, mul_out) arrays one after another in the order of
    ``instructions``. ``path_weight`` is c_path, including all normalisation. ``bias`` (number of 0e outputs,) belongs to
    the 0e slots of ``irreps_out`` in their order.

    Raises:
        RepresentationError: no path leads to a slot of `irreps_out`.
    """

    symbols: Tensor

    def __init__(
        self, irreps_in1: str | o3.Irreps, irreps_in2: str | o3.Irreps, irreps_out: str | o3.Irreps
    ) -> None:
        super().__init__()
        self.irreps_in1 = o3.Irreps(irreps_in1)
        self.irreps_in2 = o3.Irreps(irreps_in2)
        self.irreps_out = o3.Irreps(irreps_out)
        self.instructions = fully_connected_instructions(self.irreps_in1, self.irreps_in2, self.irreps_out)
        for k, out in enumerate(self.irreps_out):
            if not any(ins.i_out == k for ins in self.instructions):
                raise RepresentationError(
                    f"TensorProduct: no path of {self.irreps_in1} x {self.irreps_in2} leads to {out}, slot {k} of "
                    f"{self.irreps_out}; leave it out of irreps_out, or add irreps that lead to it"
                )
        # plain numbers for the forward pass: the compiler does not support Irreps
        self.dims = (self.irreps_in1.dim, self.irreps_in2.dim, self.irreps_out.dim)
        self.slot_dims = [mul_ir.dim for mul_ir in self.irreps_in1]
        self.path_dims = [
            (self.irreps_in1[ins.i_in1].ir.dim, self.irreps_out[ins.i_out].ir.dim)
            for ins in self.instructions
        ]
        self.coupling_sizes = [
            dim1 * dim_out
            for ins, (dim1, dim_out) in zip(self.instructions, self.path_dims, strict=True)
            for _ in range(ins.path_shape[1])
        ]
        self.bias_slots = [(k, out.mul) for k, out in enumerate(self.irreps_out) if out.ir == SCALAR]
        slots = vector_slots(self.irreps_in1, self.irreps_in2, self.irreps_out)
        self.coupling = None if slots is None else Coupling(slots)
        self.weight_numel = sum(prod(ins.path_shape) for ins in self.instructions)
        self.weight = nn.Parameter(torch.empty(self.weight_numel))
        self.bias = nn.Parameter(torch.empty(sum(out.mul for out in self.irreps_out if out.ir == SCALAR)))
        self.register_buffer("symbols", self._symbols().to(self.weight), persistent=False)
        self.reset_parameters()

    def fan_in(self, i_out: int) -> int:
        """Count the weights that reach one channel of output slot `i_out`."""
        return sum(prod(ins.path_shape[:2]) for ins in self.instructions if ins.i_out == i_out)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights and biases uniformly within 1/sqrt(fan-in of their output slot)."""
        for ins, view in zip(self.instructions, self.weight_views(), strict=True):
            bound = 1 / sqrt(self.fan_in(ins.i_out))
            view.uniform_(-bound, bound, generator=generator)
        for k, part in self._biases():
            bound = 1 / sqrt(self.fan_in(k))
            part.uniform_(-bound, bound, generator=generator)

    def weight_views(self) -> list[Tensor]:
        """Return views of `weight`, one (mul_in1, mul_in2, mul_out) array for each instruction."""
        parts = self.weight.split([prod(ins.path_shape) for ins in self.instructions])
        return [part.view(ins.path_shape) for part, ins in zip(parts, self.instructions, strict=True)]

    def forward(self, x: Tensor, attributes: Tensor) -> Tensor:
        """x (rows, irreps_in1.dim), attributes (rows, irreps_in2.dim) -> (rows, irreps_out.dim), of strides (1, rows).

        Raises:
            RepresentationError: a shape does not fit.
        """
        if x.shape != (x.shape[0], self.dims[0]) or attributes.shape != (x.shape[0], self.dims[1]):
            raise RepresentationError(
                f"TensorProduct: got features {tuple(x.shape)} and attributes {tuple(attributes.shape)}, expected "
                f"(rows, {self.dims[0]}) for {self.irreps_in1} and (rows, {self.dims[1]}) for {self.irreps_in2}"
            )
        if self.coupling is None or not is_enabled():
            return self.general(x.t(), attributes.t()).t()
        return self.coupling(self, x.t(), attributes.t(), self.weight, self.bias).t()

    def general(self, x: Tensor, attributes: Tensor) -> Tensor:
        """Compute the product path by path, transposed, for any irreps: x (dim, rows), attributes (dim, rows) -> (dim, rows)."""
        columns = x.shape[1]
        slots = x.split(self.slot_dims)
        couplings = iter((self.symbols @ attributes).split(self.coupling_sizes))
        sums: list[Tensor | None] = [None] * (1 + max(ins.i_out for ins in self.instructions))
        for ins, weight, (dim1, dim_out) in zip(
            self.instructions, self.weight_views(), self.path_dims, strict=True
        ):
            features = slots[ins.i_in1].reshape(ins.path_shape[0], dim1, columns)
            for v in range(ins.path_shape[1]):
                coupling = next(couplings).view(dim1, dim_out, columns)
                if dim1 <= dim_out:
                    term = contract(mix_channels(weight[:, v], features), coupling)
                else:
                    term = mix_channels(weight[:, v], contract(features, coupling))
                previous = sums[ins.i_out]
                sums[ins.i_out] = term if previous is None else previous + term
        # every slot has a path, which __init__ checks
        parts = [part.flatten(0, 1) for part in sums if part is not None]
        for k, bias in self._biases():
            parts[k] = parts[k] + bias[:, None]
        return torch.cat(parts)

    def linear_matrix(self, attributes: Tensor) -> Tensor:
        """Compute the matrix (irreps_out.dim, irreps_in1.dim) of x -> self(x, a), without bias, for one a (irreps_in2.dim,)."""
        matrix = attributes.new_zeros(self.irreps_out.dim, self.irreps_in1.dim)
        columns, rows = self.irreps_in1.slices(), self.irreps_out.slices()
        couplings = iter((self.symbols @ attributes).split(self.coupling_sizes))
        for ins, weight, (dim1, dim_out) in zip(
            self.instructions, self.weight_views(), self.path_dims, strict=True
        ):
            for v in range(ins.path_shape[1]):
                coupling = next(couplings).view(dim1, dim_out)
                block = torch.einsum("uw,ik->wkui", weight[:, v], coupling).flatten(0, 1).flatten(1)
                matrix[rows[ins.i_out], columns[ins.i_in1]] += block
        return matrix

    def _symbols(self) -> Tensor:
        """Path weights times Wigner symbols in float64: (rows, irreps_in2.dim), which maps attributes to the couplings
        (dim_in1, dim_out) of all paths and all channels v of the attributes, one after another."""
        blocks = []
        starts = [s.start for s in self.irreps_in2.slices()]
        for ins in self.instructions:
            irs = (
                self.irreps_in1[ins.i_in1].ir,
                self.irreps_in2[ins.i_in2].ir,
                self.irreps_out[ins.i_out].ir,
            )
            w3j = o3.wigner_3j(*(ir.l for ir in irs), dtype=torch.float64)
            for v in range(ins.path_shape[1]):
                block = torch.zeros(irs[0].dim * irs[2].dim, self.irreps_in2.dim, dtype=torch.float64)
                start = starts[ins.i_in2] + v * irs[1].dim
                block[:, start : start + irs[1].dim] = ins.path_weight * w3j.permute(0, 2, 1).flatten(0, 1)
                blocks.append(block)
        return torch.cat(blocks)

    def _biases(self) -> list[tuple[int, Tensor]]:
        """(output slot, its part of the bias), for the 0e slots."""
        parts = self.bias.split([mul for _, mul in self.bias_slots])
        return [(k, part) for (k, _), part in zip(self.bias_slots, parts, strict=True)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TensorProduct:
        """Change dtype or device; symbols are cast from float64 again, so that `.double()` does not use rounded ones."""
        super()._apply(fn, recurse)
        self.symbols = self._symbols().to(self.symbols)
        return self

    def extra_repr(self) -> str:
        """The irreps and the number of weights."""
        return f"{self.irreps_in1} x {self.irreps_in2} -> {self.irreps_out} | {self.weight_numel} weights"


def mix_channels(weight: Tensor, features: Tensor) -> Tensor:
    """weight (m, k), features (m, dim, rows) -> (k, dim, rows)."""
    return (weight.t() @ features.flatten(1)).unflatten(1, features.shape[1:])


def contract(features: Tensor, coupling: Tensor) -> Tensor:
    """features (m, dim_in, rows), coupling (dim_in, dim_out, rows) -> (m, dim_out, rows), summed over dim_in."""
    total = features[:, :1] * coupling[0]
    for i in range(1, coupling.shape[0]):
        total = torch.addcmul(total, features[:, i : i + 1], coupling[i])
    return total
