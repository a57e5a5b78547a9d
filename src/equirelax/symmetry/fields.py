"""Feature fields on a square grid of pixels: (g f)(p) = rho(g) f(g^-1 p)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.blocks import Block
from equirelax.symmetry.group import Group, constants
from equirelax.symmetry.kernels import move_entries
from equirelax.symmetry.lie import SO, O
from equirelax.symmetry.on import TensorAction
from equirelax.symmetry.reading import read_representation
from equirelax.symmetry.representation import Representation

# The entries of an element that maps the grid onto itself are 0, 1 and -1 within this; by its dtype, as in Group.tolerances.
TOLERANCES = {torch.float64: 1e-9}
COARSE = 1e-4

Entries = tuple[int, int, int, int]
"""An element [[a, b], [c, d]] that maps the grid onto itself: a, b, c, d, each 0, 1 or -1."""


@dataclasses.dataclass(frozen=True)
class GridField(TensorAction):
    """The action of a group of the plane on a feature field (..., channels, H, W).

    Row 0 is the top, and columns run to the right. Coordinates have x to the right, y up, and the origin at the centre of
    the grid. Rotation by +90 degrees is ``torch.rot90(f, 1, (-2, -1))``, and s = diag(1, -1) flips axis -2. The channels
    transform as `representation` says (the x and y of a vector; the fields of a regular representation).

    Only rotations by multiples of 90 degrees and flips move pixels to pixels. Other elements are rejected and never
    interpolated, but the group may have some (fields of C8, SO(2) or O(2) can be rotated by 90 degrees). Scalings move no
    grid of pixels onto itself, so there is no field for them.

    Attributes:
        representation: the action on the channels, of a finite group of 2 x 2 matrices, or of SO(2) or O(2). An escnn
            `FieldType` is converted.

    Raises:
        RepresentationError: the representation is of another group.
    """

    representation: Representation

    def __post_init__(self) -> None:
        object.__setattr__(self, "representation", read_representation(self.representation))
        _check_group(self.representation.group)

    @property
    def dim(self) -> int:
        """Number of channels."""
        return self.representation.dim

    def apply(self, g: Tensor, x: Tensor) -> Tensor:
        """Let g act on fields x (..., dim, H, W). This is exact: it only moves pixels and changes signs.

        A single g is (2, 2). A batch (*b, 2, 2) acts element by element on the first axes of x, which must have the sizes
        b, where b may also hold ones. It can be differentiated any number of times.

        Returns:
            A tensor of the shape and dtype of x.

        Raises:
            RepresentationError: shapes do not fit; or an element is not in the group, does not map the grid onto itself
                (rotations by 45 degrees, or by 90 degrees if H != W), or changes signs of integers.
        """
        self.group.check_shape(g)
        wrong = self.mismatch(x.shape)
        if wrong:
            raise RepresentationError(f"a tensor of shape {tuple(x.shape)} does not fit {self!r}: {wrong}")
        batch, leading = g.shape[:-2], x.shape[:-3]
        fits = len(batch) <= len(leading) and all(
            b in (1, size) for b, size in zip(batch, leading, strict=False)
        )
        if not fits:
            raise RepresentationError(
                f"A batch of elements {tuple(batch)} must match the first axes of the fields, which are "
                f"{tuple(leading)}."
            )
        entries = grid_entries(g)
        if len(set(entries)) <= 1:
            return self._move(entries[0], x) if entries else x.clone()
        # One pass for each of the at most eight different elements, whatever the size of the batch.
        which = torch.arange(len(entries)).reshape(batch).expand(leading[: len(batch)]).flatten().tolist()
        flat = x.flatten(0, len(batch) - 1)
        groups: dict[Entries, list[int]] = {}
        for row, element in enumerate(which):
            groups.setdefault(entries[element], []).append(row)
        order = torch.tensor([row for rows in groups.values() for row in rows], device=x.device)
        parts = flat[order].split([len(rows) for rows in groups.values()])
        moved = torch.cat([self._move(element, part) for element, part in zip(groups, parts, strict=True)])
        return moved[order.argsort()].reshape(x.shape)

    def derivative(self, x: Tensor) -> Tensor:
        """Return an empty tensor (0, *x.shape), since only finitely many elements map a grid onto itself.

        Raises:
            RepresentationError: the group has a Lie algebra (SO(2), O(2)).
        """
        if self.group.algebra_dim:
            raise RepresentationError(
                f"{self!r}: no small rotation maps a grid of pixels onto itself, so fields have no Lie derivative. "
                "Use Cyclic(4) or Dihedral(4) for the group."
            )
        return x.new_zeros(0, *x.shape)

    def mismatch(self, shape: Sequence[int]) -> str:
        if len(shape) >= 3 and shape[-3] == self.dim:
            return ""
        return f"{self!r} needs a tensor (..., {self.dim}, H, W): channels on the third axis from the end"

    def moves(self, axis: int, dims: int) -> bool:
        return axis >= dims - 3

    @property
    def invariant(self) -> bool:
        """Whether every element leaves every field unchanged, which holds only for the trivial group."""
        return self.group.order == 1

    @property
    def where(self) -> str:
        return " on a grid"

    def spec(self) -> dict[str, Any]:
        """Return plain, JSON-compatible Python values from which `from_spec` rebuilds the field."""
        return {"representation": self.representation.spec()}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> GridField:
        """Build the field that `spec()` describes.

        Raises:
            RepresentationError: a key, group or block is unknown.
        """
        if not isinstance(spec, dict) or set(spec) != {"representation"}:
            raise RepresentationError(
                f"A field's spec is a dict with the key 'representation', got {spec!r}."
            )
        return cls(Representation.from_spec(spec["representation"]))

    def __repr__(self) -> str:
        return f"GridField({self.representation!r})"

    def _move(self, element: Entries, x: Tensor) -> Tensor:
        channels = _channels(self.representation, element)
        if channels is None:
            g = torch.tensor(element, dtype=x.dtype, device=x.device).view(2, 2)
            return move_grid(element, self.representation.apply(g, x, axis=-3))
        source, sign = channels
        if sign is not None and not x.dtype.is_floating_point and not x.dtype.is_complex:
            raise RepresentationError(f"{self!r} turns signs, which {x.dtype} features do not all have.")
        if source is not None:
            x = x.index_select(-3, source.to(x.device))
        moved = move_grid(element, x)
        return moved if sign is None else moved * sign.to(x)


def grid_entries(g: Tensor) -> list[Entries]:
    """Convert the elements (..., 2, 2) to a list of integer entries.

    Raises:
        RepresentationError: one does not map the square grid onto itself.
    """
    off = ~move_entries(g, TOLERANCES.get(g.dtype, COARSE))
    if bool(off.any()):
        raise RepresentationError(
            f"The element {g[off][0].tolist()} does not map a grid of pixels onto itself: only turns by multiples of "
            "90 degrees and flips do, and nothing is interpolated. Draw elements of Cyclic(2), Cyclic(4), Dihedral(1), "
            "Dihedral(2) or Dihedral(4): audit(..., group=Cyclic(4)) does so for fields of a larger group."
        )
    return [(a, b, c, d) for a, b, c, d in g.round().reshape(-1, 4).long().tolist()]


def move_grid(element: Entries, x: Tensor) -> Tensor:
    """Compute f(g^-1 p) for images f (..., H, W): a flipped or transposed copy of `x`.

    Raises:
        RepresentationError: g swaps x and y, and H != W.
    """
    a, b, c, d = element
    swaps = a == 0
    if swaps and x.shape[-1] != x.shape[-2]:
        raise RepresentationError(
            f"A grid of {x.shape[-2]} x {x.shape[-1]} pixels is not square: turns by 90 degrees and diagonal flips do "
            "not map it onto itself. Pad or crop it to a square, or use Cyclic(2), Dihedral(1) or Dihedral(2)."
        )
    # g^-1 (x, y) = (a x + c y, b x + d y); columns grow with x, rows with -y.
    if swaps:
        x = x.transpose(-1, -2)
    axes = ([-2] if (c > 0 if swaps else d < 0) else []) + ([-1] if (b > 0 if swaps else a < 0) else [])
    return x.flip(axes) if axes else x.clone(memory_format=torch.contiguous_format)


@lru_cache(maxsize=512)
def _channels(representation: Representation, element: Entries) -> tuple[Tensor | None, Tensor | None] | None:
    """Read rho(g) as new[i] = sign[i] old[source[i]]: (source (dim,) long, sign (dim, 1, 1)), each None for the identity.

    The result is None if rho(g) is not a signed permutation.

    Raises:
        RepresentationError: g is not an element of the group.
    """
    with constants():
        g = torch.tensor(element, dtype=torch.float64).view(2, 2)
        if not bool(representation.group.contains(g)):
            raise RepresentationError(
                f"The element {g.tolist()} is not one of {representation.group.name}, so {representation!r} does not "
                "say what it does to the channels."
            )
        sources, signs, start = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, dtype=torch.long)], 0
        for copies, block in representation.blocks:
            found = _signed_permutation(block, g)
            if found is None:
                return None
            offsets = start + block.dim * torch.arange(copies)
            sources.append((offsets[:, None] + found[0]).flatten())
            signs.append(found[1].repeat(copies))
            start += copies * block.dim
        source, sign = torch.cat(sources), torch.cat(signs)
        still, positive = bool((source == torch.arange(start)).all()), bool((sign > 0).all())
        return None if still else source, None if positive else sign.view(-1, 1, 1)


def _signed_permutation(block: Block, g: Tensor) -> tuple[Tensor, Tensor] | None:
    """Read rho(g) as (source, sign), both (d,) long; None if it is not a signed permutation."""
    matrix = block.matrix(g)
    if not bool(move_entries(matrix)):
        return None
    return matrix.abs().argmax(dim=-1), matrix.round().sum(dim=-1).long()


def _check_group(group: Group) -> None:
    planar = group.dim == group.linear_dim == 2
    if planar and (group.order is not None or isinstance(group, (SO, O))):
        return
    why = "moves no grid of pixels onto itself exactly" if planar else "does not act on the plane"
    if group.dim == group.linear_dim + 1 == 3:
        why = "has translations, which leave a grid of pixels"
    raise RepresentationError(
        f"There is no GridField for {group.name}: it {why}. Fields are for Cyclic(n), Dihedral(n), finite groups of 2 x 2 "
        "matrices, SO(2) and O(2); compare errors on data that is transformed before it is sampled for anything else."
    )
