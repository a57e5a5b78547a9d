"""The usual representations, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from equirelax.symmetry.blocks import Positions, Pseudovector, Regular, Sign, Trivial, Vector
from equirelax.symmetry.custom import Custom
from equirelax.symmetry.group import Group
from equirelax.symmetry.representation import Representation


def trivial(group: Group, n: int = 1) -> Representation:
    """`n` invariant numbers."""
    return Representation(group, [(n, Trivial(group))])


def vector(group: Group) -> Representation:
    """The defining representation; of SE(n) and E(n) the linear part: velocities, forces, differences."""
    return Representation(group, [(1, Vector(group))])


def positions(group: Group) -> Representation:
    """Points in space: x -> R x + t under SE(n) and E(n), which is affine; `vector` for other groups."""
    return vector(group) if group.dim == group.linear_dim else Representation(group, [(1, Positions(group))])


def sign(group: Group) -> Representation:
    """A number multiplied by the sign of the determinant of the linear part: a pseudoscalar, the parity of a
    permutation.
    """
    return Representation(group, [(1, Sign(group))])


def pseudovector(group: Group) -> Representation:
    """det(R) R for a group that acts on R^3.

    Raises:
        RepresentationError: the group does not act on R^3.
    """
    return Representation(group, [(1, Pseudovector(group))])


def regular(group: Group) -> Representation:
    """The regular representation of a finite group, of size `group.order`.

    Raises:
        RepresentationError: the group is infinite.
    """
    return Representation(group, [(1, Regular(group))])


def custom(
    group: Group,
    generators: Tensor | Sequence[Any] | None = None,
    discrete: Tensor | Sequence[Any] | None = None,
    matrix_fn: Callable[[Tensor], Tensor] | None = None,
    name: str = "custom",
) -> Representation:
    """A representation by the user's own matrices; see `equirelax.symmetry.custom.Custom` for arguments and
    errors.
    """
    return Representation(group, [(1, Custom(group, generators, discrete, matrix_fn, name))])
