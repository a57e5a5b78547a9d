"""Constructors of the common representations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from equirelax.symmetry.blocks import Positions, Pseudovector, Regular, Sign, Trivial, Vector
from equirelax.symmetry.custom import Custom
from equirelax.symmetry.group import Group
from equirelax.symmetry.representation import Representation


def trivial(group: Group, n: int = 1) -> Representation:
    """Build `n` invariant numbers."""
    return Representation(group, [(n, Trivial(group))])


def vector(group: Group) -> Representation:
    """Build the defining representation; for SE(n) and E(n) its linear part, as for velocities, forces and differences."""
    return Representation(group, [(1, Vector(group))])


def positions(group: Group) -> Representation:
    """Build the action on points in space: x -> R x + t for SE(n) and E(n), which is affine; `vector` for other groups."""
    return vector(group) if group.dim == group.linear_dim else Representation(group, [(1, Positions(group))])


def sign(group: Group) -> Representation:
    """Build a number multiplied by the sign of the linear part's determinant: a pseudoscalar, a permutation's parity."""
    return Representation(group, [(1, Sign(group))])


def pseudovector(group: Group) -> Representation:
    """Build det(R) R for a group that acts on R^3, as for angular momenta.

    Raises:
        RepresentationError: the group does not act on R^3.
    """
    return Representation(group, [(1, Pseudovector(group))])


def regular(group: Group) -> Representation:
    """Build the regular representation of a finite group, of size `group.order`.

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
    """Build a representation from your own matrices. For arguments and errors see `equirelax.symmetry.custom.Custom`."""
    return Representation(group, [(1, Custom(group, generators, discrete, matrix_fn, name))])
