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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError, RepresentationError
from equirelax.relaxation.kernel_action import KernelAction, kernel_actions
from equirelax.symmetry import Representation
from equirelax.symmetry.group import constants
from equirelax.symmetry.kernels import TOLERANCE, check_planar

RANK_TOLERANCE = 1e-8
"""Singular values of a basis below this share of the largest count as 0."""
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

    def _constant(self, name: str, like: Tensor, build: Callable[[], Any]) -> Any:
        key = (name, like.dtype, like.device)
        if key not in self._cache:
            with constants():
                self._cache[key] = build()
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
        """sum_j || g_j . W - W ||^2 over the discrete generators."""
        total = weight.new_zeros(())
        for act in self._actions("generators", weight):
            total = total + (act(weight) - weight).square().sum()
        return total

    def project(self, weight: Tensor) -> Tensor:
        """The mean over the group, 1/|G| sum_g g . W, which is the orthogonal projection."""
        actions = self._actions("elements", weight)
        total = torch.zeros_like(weight)
        for act in actions:
            total = total + act(weight)
        return total / len(actions)

    def _actions(self, which: str, like: Tensor) -> list[KernelAction]:
        def build() -> list[KernelAction]:
            group = self.in_rep.group
            elements = group.discrete() if which == "generators" else group.elements()
            return kernel_actions(self.in_rep, self.out_rep, self.size, elements, like)

        actions: list[KernelAction] = self._constant(which, like, build)
        return actions


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

    def orthonormal(self, tolerance: float = RANK_TOLERANCE) -> BasisBlock:
        """With an orthonormal basis of the same span."""
        vectors = self.basis.detach().to(device="cpu", dtype=torch.float64).flatten(1)
        if len(vectors):
            _, values, vh = torch.linalg.svd(vectors, full_matrices=False)
            vectors = vh[values > tolerance * values.max()]
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
    def from_spans(cls, blocks: Sequence[BasisBlock], tolerance: float = RANK_TOLERANCE) -> BasisKernels:
        """Of bases that need be neither orthogonal, normalised nor independent.

        Args:
            tolerance: larger than `RANK_TOLERANCE` where the bases were made in single precision.
        """
        return cls(tuple(block.orthonormal(tolerance) for block in blocks))

    def lie(self, weight: Tensor) -> Tensor:
        """|| W - P W ||^2."""
        return (weight - self.project(weight)).square().sum()

    def project(self, weight: Tensor) -> Tensor:
        """P W: in every block the sum of <W, Q_b> Q_b."""
        parts = self._constant("blocks", weight, lambda: self._parts(weight))
        result = torch.zeros_like(weight)
        for rows, columns, basis in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            # (fields, fields, d_rows, d_columns, k, k)
            where = (rows[:, None, :, None], columns[None, :, None, :])
            tile = weight[where]
            coefficients = tile.flatten(2) @ basis.T  # (fields, fields, n)
            result = result.index_put(where, (coefficients @ basis).view(tile.shape))
        return result

    def _parts(self, like: Tensor) -> list[Tensor]:
        return [
            part.to(like.device)
            for block in self.blocks
            for part in (block.rows, block.columns, block.basis.flatten(1).to(like.dtype))
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
        """`(out, in, *kernel_size)`, of a transposed one `(in, out, *kernel_size)`."""
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
