"""An element of a finite group acting on kernels: (g . W)(d) = rho_out(g) W(g^-1 d) rho_in(g)^-1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry import Representation
from equirelax.symmetry.kernels import TOLERANCE, offset_permutation, signed_permutations


class KernelAction(ABC):
    """One element g; called with a kernel (out, in, k, k) it gives g . W, of the same shape, differentiable twice."""

    @abstractmethod
    def __call__(self, weight: Tensor) -> Tensor:
        """g . W."""


def kernel_actions(
    in_rep: Representation, out_rep: Representation, size: int, elements: Tensor, like: Tensor
) -> list[KernelAction]:
    """The actions of `elements` (n, 2, 2), in the dtype and on the device of `like`.

    Raises:
        RepresentationError: an element does not map the grid onto itself.
    """
    try:
        return [_moves(in_rep, out_rep, size, g, like) for g in elements]
    except _NotSigned:
        return [_products(in_rep, out_rep, size, g, like) for g in elements]


class _NotSigned(Exception):
    """Some rho(g) does more than move entries and turn signs."""


def _signed(rep: Representation, g: Tensor) -> tuple[Tensor, Tensor]:
    """Where g moves every channel, (dim,), and with which sign, (dim,)."""
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
    # signs of where an entry comes from
    sign = sign_out[rows, None] * sign_in[:, None].expand(-1, size**2).flatten()[columns]
    indices = [index.to(like.device) for index in (rows, columns, to_out, to_columns)]
    return _Moves(indices, None if bool((sign > 0).all()) else sign.to(like))


@dataclass(frozen=True)
class _Moves(KernelAction):
    """Every rho(g) moves entries, up to sign: two gathers.

    Args:
        indices: rows and columns that the entries of the matrix (out, in k k) come from, and the inverses of these two
            permutations.
        sign: (out, in k k), or None where no sign turns.
    """

    indices: list[Tensor]
    sign: Tensor | None

    def __call__(self, weight: Tensor) -> Tensor:
        moved: Tensor = _Permuted.apply(weight.flatten(1), *self.indices)
        if self.sign is not None:
            moved = moved * self.sign
        return moved.view(weight.shape)


class _Permuted(torch.autograd.Function):
    """`matrix[rows][:, columns]` for permutations. Its gradient is a gather too; torch's own adds up row by row."""

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
    """Orthogonal representations in any basis: products with the blocks' matrices, from both sides."""

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
    """The blocks' matrices (d, d) applied along axis 1 of x (a, rep.dim, k k)."""
    parts = []
    for (m, block), where, matrix in zip(rep.blocks, rep.slices(), matrices, strict=True):
        part = x[:, where].reshape(x.shape[0], m, block.dim, -1)
        parts.append((matrix @ part).flatten(1, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
