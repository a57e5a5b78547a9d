"""Convert representations of one feature vector: our own, irreps as text or from e3nn, and escnn's field types."""

from __future__ import annotations

from typing import Any

from equirelax.errors import RepresentationError
from equirelax.symmetry.escnn import from_field_type, is_escnn
from equirelax.symmetry.group import Group
from equirelax.symmetry.irreps import from_irreps, is_irreps
from equirelax.symmetry.representation import Representation

READABLE = "a Representation, irreps as text such as '2x0e+1x1o', e3nn Irreps or an escnn FieldType"


def read_representation(value: Any, group: Group | None = None, accepted: str = READABLE) -> Representation:
    """Convert `value` to a representation. Irreps are of `group`, by default O(3).

    Raises:
        RepresentationError: the value has another type or cannot be read. The message lists what is `accepted`.
    """
    if isinstance(value, Representation):
        return value
    if isinstance(value, str) or is_irreps(value):
        return from_irreps(value, group)
    if is_escnn(value, "FieldType"):
        return from_field_type(value)
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    raise RepresentationError(
        f"{shown} ({type(value).__name__}) is not a representation. Accepted are {accepted}."
    )


def is_readable(value: Any) -> bool:
    """Whether `read_representation` accepts values of this type (text may still be misspelt)."""
    return isinstance(value, (Representation, str)) or is_irreps(value) or is_escnn(value, "FieldType")
