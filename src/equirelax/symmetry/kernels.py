"""The action of a finite group of the plane on convolution kernels, and its invariant kernels.

A convolution y(p) = sum_d W(d) x(p + d) of feature fields, (g f)(p) = rho(g) f(g^-1 p), commutes with g exactly when

    W(g d) = rho_out(g) W(d) rho_in(g)^-1     for every offset d of the kernel,

that is, when W is invariant under (g . W)(d) = rho_out(g) W(g^-1 d) rho_in(g)^-1. Kernels are (out, in, k, k). Row 0
is the top, and offsets have x to the right, y up and the origin at the kernel's centre (between the pixels for even k).
If every rho(g) is a signed permutation matrix (trivial, sign, vector and regular blocks of C1,
C2, C4, D1, D2, D4), g moves the entries of W and changes some signs. An invariant kernel then has one free parameter for
every orbit of entries, up to sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.blocks import Block
from equirelax.symmetry.group import Group, constants
from equirelax.symmetry.representation import Representation

TOLERANCE = 1e-9


def move_entries(matrices: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Check which matrices (..., n, n) are signed permutations, with one 1 or -1 in each row and column: bool (...)."""
    rounded = matrices.round()
    one_each = ((rounded.abs().sum(dim=axis) == 1).all(dim=-1) for axis in (-2, -1))
    close = (matrices - rounded).abs().amax(dim=(-2, -1)) <= tolerance
    return close & torch.stack(list(one_each)).all(dim=0)


def maps_grid(g: Tensor) -> bool:
    """Whether a (2, 2) element maps the square grid onto itself: a rotation by 90 degrees, or a flip of x, y or a diagonal."""
    return bool(move_entries(g))


def offset_permutation(g: Tensor, size: int) -> Tensor:
    """Compute where `g` (2, 2) moves each of the size^2 offsets of a kernel: entry d holds the index of g d, row by row.

    Raises:
        RepresentationError: g does not map the grid onto itself.
    """
    if g.shape != (2, 2) or not maps_grid(g):
        raise RepresentationError(
            f"The element {g.tolist()} does not map a square grid onto itself; only turns by multiples of 90 degrees "
            "and flips do (C1, C2, C4, D1, D2, D4)."
        )
    half = size - 1  # coordinates times two, so that they are integers for even sizes too
    steps = torch.arange(size)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    points = torch.stack([2 * columns - half, half - 2 * rows]).reshape(2, -1)  # (x, y)
    x, y = g.round().long().cpu() @ points
    return torch.div(half - y, 2, rounding_mode="floor") * size + torch.div(
        x + half, 2, rounding_mode="floor"
    )


def check_planar(group: Group, what: str) -> None:
    """Raise RepresentationError unless `group` is finite, of 2 x 2 matrices, and maps the square grid onto itself."""
    fits = group.order is not None and group.dim == group.linear_dim == 2
    if not fits or not all(maps_grid(g) for g in group.discrete()):
        raise RepresentationError(
            f"{what}: {group.name} does not map a square grid onto itself; expected Cyclic(1), Cyclic(2), Cyclic(4), "
            "Dihedral(1), Dihedral(2) or Dihedral(4), or a subgroup of the last one."
        )


def signed_permutations(block: Block) -> tuple[Tensor, Tensor]:
    """Compute (image, sign) with rho(g) e_i = sign e_image for every element g and entry i of a block, (order, d) long each.

    Raises:
        RepresentationError: some rho(g) is not such a matrix (the vectors of C8, irreps of other bases).
    """
    with constants():
        matrices = block.matrix(block.group.elements())
    if not bool(move_entries(matrices).all()):
        raise RepresentationError(
            f"{block!r} does not move entries up to sign, as trivial, sign, vector and regular blocks of C1, C2, C4, D1, "
            "D2, D4 do."
        )
    return matrices.abs().argmax(dim=-2), matrices.round().sum(dim=-2).long()


@dataclass(frozen=True)
class Orbits:
    """The invariant kernels of one pair of blocks, with one free parameter per orbit.

    Args:
        index: (d_out d_in k k,), the orbit that an entry belongs to (0 where `sign` is 0).
        sign: (d_out d_in k k,), 1 or -1; 0 for entries that invariance forbids.
        sizes: (orbits,), entries of each orbit.
    """

    index: Tensor
    sign: Tensor
    sizes: Tensor


def kernel_orbits(block_in: Block, block_out: Block, size: int) -> Orbits:
    """Compute the orbits of the entries of a kernel (d_out, d_in, size, size) under the group.

    Raises:
        RepresentationError: the blocks are of different groups, or do not move entries up to sign, or the group does
            not map the grid onto itself.
    """
    group = block_in.group
    if block_out.group != group:
        raise RepresentationError(f"{block_in!r} and {block_out!r} must be of one group.")
    check_planar(group, "kernel_orbits")
    to_in, sign_in = signed_permutations(block_in)
    to_out, sign_out = signed_permutations(block_out)
    moved = torch.stack([offset_permutation(g, size) for g in group.elements()])  # (order, k k)
    pixels = size * size
    images = (to_out[:, :, None, None] * block_in.dim + to_in[:, None, :, None]) * pixels + moved[
        :, None, None
    ]
    images = images.flatten(1)  # (order, d_out d_in k k)
    signs = (sign_out[:, :, None, None] * sign_in[:, None, :, None]).expand(-1, -1, -1, pixels).flatten(1)
    own = torch.arange(images.shape[1])
    first, element = images.min(dim=0)
    forbidden = ((images == own) & (signs < 0)).any(dim=0)
    sign = signs.gather(0, element[None])[0].masked_fill(forbidden, 0)
    roots = first[~forbidden].unique()
    index = torch.zeros_like(own)
    index[~forbidden] = torch.searchsorted(roots, first[~forbidden])
    sizes = torch.bincount(index[~forbidden], minlength=len(roots))
    return Orbits(index, sign, sizes)


def is_permutation(representation: Representation) -> bool:
    """Whether every element permutes entries without sign changes, as for trivial and regular blocks."""
    try:
        return all(bool((signed_permutations(block)[1] > 0).all()) for _, block in representation.blocks)
    except RepresentationError:
        return False
