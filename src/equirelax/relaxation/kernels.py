"""Convolutions as residuals: how their kernel is applied, and how far it is from the equivariant kernels.

The residual of an equivariant convolution is a dense one, of the same size, stride and padding. Its kernel W is
equivariant or not by itself, whatever it is applied to: a penalty in weight space needs no inputs. For groups that map
the grid onto itself it is the group difference

    sum_j || g_j . W - W ||^2,      (g . W)(d) = rho_out(g) W(g^-1 d) rho_in(g)^-1,

over the discrete generators g_j (`GridKernels`); for all others, which no kernel on a grid obeys exactly, the squared
distance to the layer's own basis (`BasisKernels`).

CR's term for a linear layer (section 4) weighs the same difference with the inputs' second moment C, tr(K C K^T). Here
C is the identity: the terms are what CR's are, on average for one pixel of the output, for white inputs (independent
entries of variance 1, at all pixels). They do not grow with the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError, RepresentationError
from equirelax.symmetry import Representation
from equirelax.symmetry.group import constants
from equirelax.symmetry.kernels import TOLERANCE, check_planar, offset_permutation

# Singular values below this share of the largest count as 0.
RANK_TOLERANCE = 1e-8
_CONV = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
_TRANSPOSED = (
    nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d,
)
Cache = dict[tuple[Any, ...], Any]


class KernelSymmetry(ABC):
    """Which kernels of a convolution are equivariant. Frozen dataclasses: copied and pickled with the model.

    Kernels are dense, as torch's functions take them: (out, in, k, k); of a transposed convolution (in, out, k, k).

    Attributes:
        measures: what `lie` is, in words.
    """

    measures: ClassVar[str]

    @abstractmethod
    def lie(self, weight: Tensor) -> Tensor:
        """How far `weight` is from equivariant: 0-dimensional, >= 0, differentiable twice; 0 (to rounding) for every
        equivariant kernel.
        """

    @abstractmethod
    def project(self, weight: Tensor) -> Tensor:
        """The nearest equivariant kernel, of the same shape; linear in `weight`, differentiable."""


class _Cached(KernelSymmetry):
    """With constants that are made in float64 and kept per dtype and device; copies and pickles leave these out."""

    _cache: Cache

    def _constant(self, name: str, like: Tensor, build: Any) -> Any:
        key = (name, like.dtype, like.device)
        if key not in self._cache:
            with constants():
                self._cache[key] = [part.to(device=like.device) for part in build()]
        return self._cache[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}


@dataclass(frozen=True)
class GridKernels(_Cached):
    """Kernels on the square grid, for a finite group that maps it onto itself.

    A transposed convolution is the adjoint of one from its output to its input: give its representations swapped.

    Args:
        in_rep, out_rep: orthogonal representations of C1, C2, C4, D1, D2 or D4, in any basis.
        size: k.

    Raises:
        RepresentationError: another group, or a representation that is not orthogonal.
    """

    in_rep: Representation
    out_rep: Representation
    size: int
    measures: ClassVar[str] = "group difference"
    _cache: Cache = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_planar(self.in_rep.group, "GridKernels")
        if self.in_rep.group != self.out_rep.group:
            raise RepresentationError(
                f"GridKernels: {self.in_rep!r} and {self.out_rep!r} must be representations of one group"
            )
        for rep in (self.in_rep, self.out_rep):
            for _, block in rep.blocks:
                matrices = block.matrix(rep.group.elements())
                away = matrices.mT @ matrices - torch.eye(block.dim, dtype=matrices.dtype)
                if float(away.abs().max()) > TOLERANCE:
                    raise RepresentationError(f"GridKernels: the block {block!r} is not orthogonal")

    def lie(self, weight: Tensor) -> Tensor:
        """sum_j || rho_out(g_j) W(g_j^-1 .) - W rho_in(g_j) ||^2: the group difference, as rho_in is orthogonal."""
        (pixels,) = self._constant("generators", weight, self._generator_pixels)
        out, in_ = weight.shape[:2]
        flat = weight.reshape(out, in_, -1)
        left = self.out_rep.discrete_left(flat.reshape(out, -1)).view(-1, *flat.shape)
        right = self.in_rep.discrete_right(flat.transpose(1, 2).reshape(-1, in_))
        right = right.view(-1, out, flat.shape[2], in_).transpose(2, 3)
        total = weight.new_zeros(())
        for one_left, one_right, moved in zip(left, right, pixels, strict=True):
            # compared at g d: (g . W)(g d) = rho_out W(d) rho_in^-1
            total = total + (one_left - one_right.index_select(2, moved)).square().sum()
        return total

    def project(self, weight: Tensor) -> Tensor:
        """The mean over the group, 1/|G| sum_g g . W, which is the orthogonal projection."""
        matrices = self._constant("elements", weight, lambda: self._elements(weight.dtype))
        from_pixel, blocks = matrices[0], matrices[1:]
        rows, columns = blocks[: len(self.out_rep.blocks)], blocks[len(self.out_rep.blocks) :]
        flat = weight.flatten(2)
        total = torch.zeros_like(flat)
        for g in range(len(from_pixel)):
            moved = flat.index_select(2, from_pixel[g])
            moved = _blockwise(self.out_rep, [m[g] for m in rows], moved.transpose(0, 1)).transpose(0, 1)
            total = total + _blockwise(self.in_rep, [m[g] for m in columns], moved)
        return (total / len(from_pixel)).view(weight.shape)

    def _generator_pixels(self) -> list[Tensor]:
        pixels = [offset_permutation(g, self.size) for g in self.in_rep.group.discrete()]
        return [torch.stack(pixels) if pixels else torch.zeros(0, self.size**2, dtype=torch.long)]

    def _elements(self, dtype: torch.dtype) -> list[Tensor]:
        elements = self.in_rep.group.elements()
        from_pixel = torch.stack([offset_permutation(g, self.size).argsort() for g in elements])
        blocks = [block for rep in (self.out_rep, self.in_rep) for _, block in rep.blocks]
        return [from_pixel, *(block.matrix(elements).to(dtype) for block in blocks)]


def _blockwise(rep: Representation, matrices: list[Tensor], x: Tensor) -> Tensor:
    """The blocks' matrices (d, d) applied along axis 1 of x (a, rep.dim, k k)."""
    parts = []
    for (m, block), where, matrix in zip(rep.blocks, rep.slices(), matrices, strict=True):
        part = x[:, where].reshape(x.shape[0], m, block.dim, -1)
        parts.append((matrix @ part).flatten(1, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@dataclass(frozen=True, eq=False)
class BasisBlock:
    """The kernels between all fields of one kind and all of another, each pair with the same basis.

    Args:
        rows: (fields, d_rows), long: channels on axis 0 of the kernel (out; of a transposed convolution in), field by
            field.
        columns: (fields, d_columns), long: channels on axis 1.
        basis: (n, d_rows, d_columns, k, k), float64; n may be 0.
    """

    rows: Tensor
    columns: Tensor
    basis: Tensor

    def orthonormal(self) -> BasisBlock:
        """With an orthonormal basis of the same span."""
        vectors = self.basis.detach().to(device="cpu", dtype=torch.float64).flatten(1)
        if len(vectors):
            _, values, vh = torch.linalg.svd(vectors, full_matrices=False)
            vectors = vh[values > RANK_TOLERANCE * values.max()]
        return BasisBlock(
            self.rows.cpu(), self.columns.cpu(), vectors.reshape(-1, *self.basis.shape[1:]).contiguous()
        )


@dataclass(frozen=True, eq=False)
class BasisKernels(_Cached):
    """Kernels in the span of a basis, block by block: what the layer itself can express.

    Args:
        blocks: with orthonormal bases (`from_spans` makes them so); pairs of channels in no block have no equivariant
            kernel, and those in several must not be.
    """

    blocks: tuple[BasisBlock, ...]
    measures: ClassVar[str] = "distance to the basis"
    _cache: Cache = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def from_spans(cls, blocks: Sequence[BasisBlock]) -> BasisKernels:
        """Of bases that need be neither orthogonal, normalised nor independent."""
        return cls(tuple(block.orthonormal() for block in blocks))

    def lie(self, weight: Tensor) -> Tensor:
        """|| W - P W ||^2."""
        return (weight - self.project(weight)).square().sum()

    def project(self, weight: Tensor) -> Tensor:
        """P W: in every block the sum of <W, Q_b> Q_b."""
        parts = self._constant("blocks", weight, lambda: self._parts(weight.dtype))
        result = torch.zeros_like(weight)
        for rows, columns, basis in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            # (fields, fields, d_rows, d_columns, k, k)
            where = (rows[:, None, :, None], columns[None, :, None, :])
            tile = weight[where]
            coefficients = tile.flatten(2) @ basis.T  # (fields, fields, n)
            result = result.index_put(where, (coefficients @ basis).view(tile.shape))
        return result

    def _parts(self, dtype: torch.dtype) -> list[Tensor]:
        return [
            part
            for block in self.blocks
            for part in (block.rows, block.columns, block.basis.flatten(1).to(dtype))
        ]


@dataclass(frozen=True)
class Convolution:
    """How a residual's kernel is applied, as the relaxed layer's is.

    Args:
        kernel_size: one entry for every spatial axis, 1 to 3 of them.
        symmetry: which kernels are equivariant.
        stride, padding, dilation: as in torch, one entry for every axis.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        transposed: a transposed convolution, with a kernel (in, out, k, k).
        output_padding: of a transposed one.

    Raises:
        PlacementError: settings that do not fit each other.
    """

    kernel_size: tuple[int, ...]
    symmetry: KernelSymmetry
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        axes = len(self.kernel_size)
        settings = (self.stride, self.padding, self.dilation, self.output_padding or (0,) * axes)
        if not 1 <= axes <= 3 or any(len(setting) != axes for setting in settings):
            raise PlacementError(
                f"a convolution over 1 to 3 axes needs a kernel size, stride, padding and dilation for each, got "
                f"{self.kernel_size}, {', '.join(map(str, settings))}"
            )
        if self.transposed and self.padding_mode != "zeros":
            raise PlacementError(
                f"a transposed convolution pads with zeros, not by {self.padding_mode!r}: exclude the module"
            )

    @property
    def pixels(self) -> int:
        """Offsets of the kernel."""
        return torch.Size(self.kernel_size).numel()

    def weight_shape(self, in_dim: int, out_dim: int) -> tuple[int, ...]:
        """(out, in, *kernel_size), of a transposed one (in, out, *kernel_size)."""
        return (*((in_dim, out_dim) if self.transposed else (out_dim, in_dim)), *self.kernel_size)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution of x (batch, in, ...) with a dense kernel: (batch, out, ...)."""
        axes = len(self.kernel_size)
        if self.transposed:
            extra = self.output_padding or (0,) * axes
            return _TRANSPOSED[axes - 1](x, weight, bias, self.stride, self.padding, extra, 1, self.dilation)
        padding = self.padding
        if self.padding_mode != "zeros" and any(padding):
            sides = [side for one in reversed(padding) for side in (one, one)]
            x, padding = nn.functional.pad(x, sides, mode=self.padding_mode), (0,) * axes
        return _CONV[axes - 1](x, weight, bias, self.stride, padding, self.dilation)
