"""Equivariant kernels of convolutions, and the distance of other kernels from them.

The residual of an equivariant convolution is a dense one of the same size, stride and padding. Whether its kernel W is
equivariant does not depend on the inputs, so a penalty in weight space needs none. For groups that map
the grid onto itself it is the group difference

    sum_j || g_j . W - W ||^2,      (g . W)(d) = rho_out(g) W(g^-1 d) rho_in(g)^-1,

over the discrete generators g_j (`GridKernels`). For all other groups, with which no kernel on a grid commutes exactly, it is the
squared distance to the layer's own basis (`BasisKernels`).

CR's term for a linear layer (section 4) weights the same difference with the inputs' second moment C, tr(K C K^T). Here
C is the identity: the terms are the mean of CR's per pixel of the output, for white inputs (independent
entries of variance 1 at all pixels). They do not grow with the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.relaxation.surroundings import in_transform
from equirelax.symmetry import Representation
from equirelax.symmetry.group import constants
from equirelax.symmetry.kernels import TOLERANCE, check_planar, offset_permutation, signed_permutations

RANK_TOLERANCE = 1e-8
"""Singular values of a basis below this fraction of the largest count as 0."""
Cache = dict[tuple[Any, ...], Any]


class KernelSymmetry(ABC):
    """The equivariant kernels of a convolution. Subclasses are frozen dataclasses, copied and pickled with the model.

    Kernels are dense, in the shape that torch's functions take: (out, in, k, k), or (in, out, k, k) if transposed.

    Attributes:
        measures: A description of `lie`.
    """

    measures: ClassVar[str]

    @abstractmethod
    def lie(self, weight: Tensor) -> Tensor:
        """Measure how far `weight` is from equivariant.

        The result is 0-dimensional, >= 0 and differentiable twice, and 0 up to rounding for every equivariant kernel.
        """

    @abstractmethod
    def project(self, weight: Tensor) -> Tensor:
        """The nearest equivariant kernel, of the same shape. It is linear in `weight` and differentiable."""


class _Cached(KernelSymmetry):
    """A symmetry that caches constants, computed in float64, per dtype and device. Copies and pickles leave the cache out."""

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
        RepresentationError: the group is another one, or a representation is not orthogonal.
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
        rows: (fields, d_rows), long: channels on axis 0 of the kernel (out, or in for a transposed convolution), field by
            field.
        columns: (fields, d_columns), long: channels on axis 1.
        basis: (n, d_rows, d_columns, k, k), float64; n may be 0.
    """

    rows: Tensor
    columns: Tensor
    basis: Tensor

    def orthonormal(self, tolerance: float = RANK_TOLERANCE) -> BasisBlock:
        """The block with an orthonormal basis of the same span."""
        vectors = self.basis.detach().to(device="cpu", dtype=torch.float64).flatten(1)
        if len(vectors):
            _, values, vh = torch.linalg.svd(vectors, full_matrices=False)
            vectors = vh[values > tolerance * values.max()]
        return BasisBlock(
            self.rows.cpu(), self.columns.cpu(), vectors.reshape(-1, *self.basis.shape[1:]).contiguous()
        )


@dataclass(frozen=True, eq=False)
class BasisKernels(_Cached):
    """Kernels in the span of a basis, block by block, which are those that the layer itself can express.

    Args:
        blocks: Blocks with orthonormal bases, as `from_spans` makes them. A pair of channels in no block has no equivariant
            kernel. No pair may be in several blocks.
    """

    blocks: tuple[BasisBlock, ...]
    measures: ClassVar[str] = "distance to the basis"
    _cache: Cache = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def from_spans(cls, blocks: Sequence[BasisBlock], tolerance: float = RANK_TOLERANCE) -> BasisKernels:
        """Make the kernels from bases that need not be orthogonal, normalised or independent.

        Args:
            blocks: Blocks with any bases.
            tolerance: A rank tolerance; use one above `RANK_TOLERANCE` for bases that were made in single precision.
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


class KernelAction(ABC):
    """The action of one element g of a finite group on kernels, (g . W)(d) = rho_out(g) W(g^-1 d) rho_in(g)^-1.

    Called with a kernel (out, in, k, k) it returns g . W, of the same shape and differentiable twice.
    """

    @abstractmethod
    def __call__(self, weight: Tensor) -> Tensor:
        """Compute g . W."""


def kernel_actions(
    in_rep: Representation, out_rep: Representation, size: int, elements: Tensor, like: Tensor
) -> list[KernelAction]:
    """Make the actions of `elements` (n, 2, 2), in the dtype and on the device of `like`.

    Raises:
        RepresentationError: an element does not map the grid onto itself.
    """
    try:
        return [_moves(in_rep, out_rep, size, g, like) for g in elements]
    except _NotSigned:
        return [_products(in_rep, out_rep, size, g, like) for g in elements]


class _NotSigned(Exception):
    """Some rho(g) does more than move entries and change signs."""


def _signed(rep: Representation, g: Tensor) -> tuple[Tensor, Tensor]:
    """The channel to which g moves every channel, (dim,), and its sign, (dim,)."""
    images, signs, start = [], [], 0
    found = (rep.group.elements() - g).abs().amax(dim=(1, 2)) < TOLERANCE
    for multiplicity, block in rep.blocks:
        try:
            image, sign = signed_permutations(block)
        except RepresentationError as error:
            raise _NotSigned from error
        offsets = start + block.dim * torch.arange(multiplicity)
        images.append((offsets[:, None] + image[found]).flatten())
        signs.append(sign[found].expand(multiplicity, -1).flatten())
        start += multiplicity * block.dim
    return torch.cat(images), torch.cat(signs)


def _moves(
    in_rep: Representation, out_rep: Representation, size: int, g: Tensor, like: Tensor
) -> KernelAction:
    to_out, sign_out = _signed(out_rep, g)
    to_in, sign_in = _signed(in_rep, g)
    pixels = offset_permutation(g, size)
    to_columns = (to_in[:, None] * size**2 + pixels).flatten()
    rows, columns = to_out.argsort(), to_columns.argsort()
    # signs by the source of an entry
    sign = sign_out[rows, None] * sign_in[:, None].expand(-1, size**2).flatten()[columns]
    indices = [index.to(like.device) for index in (rows, columns, to_out, to_columns)]
    return _Moves(indices, None if bool((sign > 0).all()) else sign.to(like))


@dataclass(frozen=True)
class _Moves(KernelAction):
    """The action by two gathers, if every rho(g) moves entries up to sign.

    Args:
        indices: source rows and columns of the entries of the matrix (out, in k k), and the inverses of these two
            permutations.
        sign: (out, in k k), or None if no sign changes.
    """

    indices: list[Tensor]
    sign: Tensor | None

    def __call__(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        if in_transform():
            moved = matrix.index_select(0, self.indices[0]).index_select(1, self.indices[1])
        else:
            moved = _Permuted.apply(matrix, *self.indices)
        if self.sign is not None:
            moved = moved * self.sign
        return moved.view(weight.shape)


class _Permuted(torch.autograd.Function):
    """`matrix[rows][:, columns]` for permutations, whose gradient is also a gather; torch's own accumulates row by row."""

    @staticmethod
    def forward(
        ctx: Any, matrix: Tensor, rows: Tensor, columns: Tensor, back_rows: Tensor, back_columns: Tensor
    ) -> Tensor:
        ctx.save_for_backward(rows, columns, back_rows, back_columns)
        return matrix.index_select(0, rows).index_select(1, columns)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, back_rows, back_columns = ctx.saved_tensors
        back = _Permuted.apply(gradients[0], back_rows, back_columns, rows, columns)
        return back, None, None, None, None


def _products(
    in_rep: Representation, out_rep: Representation, size: int, g: Tensor, like: Tensor
) -> KernelAction:
    matrices = [[block.matrix(g).to(like) for _, block in rep.blocks] for rep in (out_rep, in_rep)]
    from_pixel = offset_permutation(g, size).argsort().to(like.device)
    return _Products(out_rep, in_rep, matrices[0], matrices[1], from_pixel)


@dataclass(frozen=True)
class _Products(KernelAction):
    """The action of orthogonal representations in any basis, by products with the blocks' matrices from both sides."""

    out_rep: Representation
    in_rep: Representation
    out_matrices: list[Tensor]
    in_matrices: list[Tensor]
    from_pixel: Tensor

    def __call__(self, weight: Tensor) -> Tensor:
        moved = weight.flatten(2).index_select(2, self.from_pixel)
        moved = _blockwise(self.out_rep, self.out_matrices, moved.transpose(0, 1)).transpose(0, 1)
        return _blockwise(self.in_rep, self.in_matrices, moved).view(weight.shape)


def _blockwise(rep: Representation, matrices: list[Tensor], x: Tensor) -> Tensor:
    """Apply the blocks' matrices (d, d) along axis 1 of x (a, rep.dim, k k)."""
    parts = []
    for (m, block), where, matrix in zip(rep.blocks, rep.slices(), matrices, strict=True):
        part = x[:, where].reshape(x.shape[0], m, block.dim, -1)
        parts.append((matrix @ part).flatten(1, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
