"""How a finite group of the plane acts on feature fields on a square grid, exactly: by moving pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.group import Group
from equirelax.symmetry.kernels import maps_grid
from equirelax.symmetry.representation import Representation


@dataclass(frozen=True)
class Field:
    """A feature field on a grid, (..., channels, H, W): (g f)(p) = rho(g) f(g^-1 p).

    Row 0 is the top; coordinates are x to the right and y up, with their origin at the centre of the grid. Turns by
    multiples of 90 degrees and flips permute the pixels, so that the action is exact, on even and odd sizes.

    Args:
        representation: rho, of a group of 2 x 2 matrices: how the channels mix.

    Raises:
        RepresentationError: the group is not one of 2 x 2 matrices, or the representation is affine.
    """

    representation: Representation

    def __post_init__(self) -> None:
        if self.group.dim != 2 or self.group.linear_dim != 2 or not self.representation.linear:
            raise RepresentationError(
                f"A field on a grid transforms under a group of 2 x 2 matrices, such as Cyclic(4); got "
                f"{self.representation!r} of {self.group.name}."
            )

    @property
    def group(self) -> Group:
        """The group that acts."""
        return self.representation.group

    @property
    def dim(self) -> int:
        """Number of channels."""
        return self.representation.dim

    def apply(self, g: Tensor, x: Tensor) -> Tensor:
        """g acting on fields x (..., dim, H, W): a tensor like x.

        A single g is (2, 2); a batch (b, 2, 2) acts element by element on the first axis of x (b, ..., dim, H, W).

        Raises:
            RepresentationError: shapes do not fit, or an element does not map this grid onto itself.
        """
        self.group.check_shape(g)
        if x.dim() < 3 or x.shape[-3] != self.dim:
            raise RepresentationError(
                f"{self!r} acts on tensors (..., {self.dim}, H, W), got shape {tuple(x.shape)}."
            )
        if g.dim() == 2:
            return self.representation.apply(g, move_grid(g, x), axis=-3)
        if g.dim() != 3 or x.dim() < 4 or len(g) != len(x):
            raise RepresentationError(
                f"A batch of elements {tuple(g.shape[:-2])} acts on the first axis of the fields, which have shape "
                f"{tuple(x.shape)}."
            )
        out = torch.empty_like(x)
        left = torch.ones(len(g), dtype=torch.bool, device=g.device)
        while bool(left.any()):  # once for every element that occurs, of which there are at most eight
            element = g[left][0]
            same = left & ((g - element).abs().amax(dim=(-2, -1)) < 1e-6)
            rows = same.to(x.device)
            out[rows] = self.apply(element, x[rows])
            left &= ~same
        return out

    def spec(self) -> dict[str, Any]:
        """Plain Python from which `from_spec` makes the field again."""
        return {"field": self.representation.spec()}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Field:
        """The field that `spec()` described. Raises RepresentationError for another dict."""
        if set(spec) != {"field"}:
            raise RepresentationError(f"A field's spec is a dict with the key 'field', got {spec!r}.")
        return cls(Representation.from_spec(spec["field"]))

    def __repr__(self) -> str:
        return f"Field({self.representation!r})"


def move_grid(g: Tensor, x: Tensor) -> Tensor:
    """The pixels of x (..., H, W) moved by g (2, 2): (g f)(p) = f(g^-1 p), the channels left alone.

    Raises:
        RepresentationError: g does not map this grid onto itself: a turn by another angle, a scaling, or a quarter turn
            of a grid that is not square.
    """
    if not maps_grid(g):
        raise RepresentationError(
            f"The element {g.tolist()} does not map a square grid onto itself, so that it has no exact action on pixels: "
            "only turns by multiples of 90 degrees and flips have. Use a subgroup such as Cyclic(4) or Dihedral(4); "
            "other angles and scalings need interpolation, whose error is no equivariance error."
        )
    (a, b), (c, _) = g.round().long().tolist()
    if b and x.shape[-1] != x.shape[-2]:
        raise RepresentationError(
            f"A quarter turn or diagonal flip needs a square grid; this one is {x.shape[-2]} x {x.shape[-1]} pixels. Use "
            "Cyclic(2) or Dihedral(2)."
        )
    # the new value at (x, y) is the old one at g^T (x, y); y counts against the rows
    if a:
        return x.flip([axis for axis, sign in ((-1, a), (-2, int(g[1, 1].round()))) if sign < 0])
    moved = x.transpose(-1, -2)  # f(y', x') of rows and columns: (x, y) -> (-y, -x)
    return moved.flip([axis for axis, sign in ((-1, -b), (-2, -c)) if sign < 0])
