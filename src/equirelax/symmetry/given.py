"""Convert every accepted form of the way a whole tensor transforms."""

from __future__ import annotations

from typing import Any

from equirelax.symmetry.escnn import is_escnn
from equirelax.symmetry.fields import GridField
from equirelax.symmetry.group import Group
from equirelax.symmetry.on import TensorAction
from equirelax.symmetry.reading import READABLE, is_readable, read_representation
from equirelax.symmetry.representation import Representation

ACCEPTED = f"{READABLE}, On(representation, axis) or GridField(representation)"


def as_representation(value: Any, group: Group | None = None) -> Representation | TensorAction:
    """Convert a value to the representation or action by which a tensor transforms.

    Args:
        value: a `Representation`, an `On` or a `GridField`, which are returned as they are; irreps as text
            (`"2x0e+1x1o"`) or as e3nn's `Irreps`; or an escnn `FieldType`, which becomes a `GridField` if its group
            acts on the plane, and a `Representation` otherwise.
        group: The group of irreps: SO(3), O(3), SE(3) or E(3); by default O(3). Other values specify their group.

    Raises:
        RepresentationError: `value` is something else, text that cannot be read, or irreps of another group.

    Examples:
        >>> from equirelax.symmetry import SO, as_representation
        >>> as_representation("2x0e+1x1o")
        2x0e+1x1o
        >>> as_representation("1x1e", SO(3)).dim
        3
    """
    if isinstance(value, TensorAction):
        return value
    rep = read_representation(value, group, ACCEPTED)
    return GridField(rep) if is_escnn(value, "FieldType") and value.gspace.dimensionality == 2 else rep


def is_given(value: Any) -> bool:
    """Whether `as_representation` accepts values of this type (text may still be misspelt)."""
    return isinstance(value, TensorAction) or is_readable(value)
