"""What an audit was given: trees of representations in every form in which people have them, and the model's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch import nn

from equirelax.auditing.tree import representations
from equirelax.errors import AuditError, RepresentationError
from equirelax.symmetry import SE, SO, E, Group, O, Representation, TensorAction, as_representation
from equirelax.symmetry.escnn import is_escnn
from equirelax.symmetry.given import is_given
from equirelax.symmetry.irreps import is_irreps


class _FromModel:
    """Stands for a representation that was not given."""

    def __repr__(self) -> str:
        return "FROM_MODEL"


FROM_MODEL: Final[Any] = _FromModel()
"""Take the representation from the model's own attributes; None would say that nothing transforms."""

_ATTRIBUTES = {
    "in_rep": (("irreps_in",), ("irreps_in1", "irreps_in2"), ("in_type",), ("in_rep",)),
    "out_rep": (("irreps_out",), ("out_type",), ("out_rep",)),
}


def given_pair(in_rep: Any, out_rep: Any, group: Group | None, model: Any = None) -> tuple[Any, Any]:
    """Both trees with every entry as a `Representation`, `On`, `GridField` or None.

    Irreps are of `group` where that is SO(3), O(3), SE(3) or E(3), else of the first such group that another entry has,
    else of O(3).

    Raises:
        AuditError: an entry is nothing of the kind, or was not given and `model` says nothing of it.
    """
    trees = {
        name: own(model, name) if tree is FROM_MODEL else tree
        for name, tree in (("in_rep", in_rep), ("out_rep", out_rep))
    }
    groups = [group, *(found for tree in trees.values() for found in _groups(tree))]
    spatial = next((found for found in groups if isinstance(found, (SO, O, SE, E)) and found.n == 3), None)
    return tuple(_read(tree, spatial, name) for name, tree in trees.items())  # type: ignore[return-value]


def own(model: Any, name: str) -> Any:
    """The tree that a model's attributes tell of: ``irreps_in``, ``in_type`` or ``in_rep``, and likewise for the output;
    a mapping from names to irreps for a network that takes a dict.

    Raises:
        AuditError: it has none of them.
    """
    bare = model
    while isinstance(bare, (nn.parallel.DistributedDataParallel, nn.DataParallel)) or hasattr(
        bare, "_orig_mod"
    ):
        bare = bare.module if hasattr(bare, "module") else bare._orig_mod
    for attributes in _ATTRIBUTES[name]:
        values = [getattr(bare, attribute, None) for attribute in attributes]
        if all(map(_tells, values)):
            return tuple(values) if len(values) > 1 else values[0]
    what = "input" if name == "in_rep" else "output"
    looked = ", ".join("/".join(attributes) for attributes in _ATTRIBUTES[name])
    raise AuditError(
        f"{name} is not given, and {type(bare).__name__} has no attribute that tells of it ({looked}): give the {what}'s "
        "representation, such as '2x0e+1x1o' or vector(O(3)), or None for what no group element changes"
    )


def only_present(tree: Any, reps: Any) -> Any:
    """A model's own mapping of names to representations, restricted to the names that are there."""
    if isinstance(reps, Mapping) and isinstance(tree, Mapping):
        return {key: rep for key, rep in reps.items() if key in tree}
    return reps


def group_of(in_rep: Any, out_rep: Any) -> Group:
    """The group of the first representation in the two trees.

    Raises:
        AuditError: there is none.
    """
    for rep in (*representations(in_rep), *representations(out_rep)):
        return rep.group
    raise AuditError("nothing transforms: in_rep and out_rep hold no representation, and no group is given")


def _tells(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(item is None or is_irreps(item) for item in value.values())
    return (
        isinstance(value, (Representation, TensorAction)) or is_irreps(value) or is_escnn(value, "FieldType")
    )


def _read(tree: Any, group: Group | None, path: str) -> Any:
    if tree is None:
        return None
    if is_given(tree):
        try:
            return as_representation(tree, group)
        except RepresentationError as error:
            raise AuditError(f"{path}: {error}") from error
    if isinstance(tree, Mapping):
        return {key: _read(value, group, f"{path}[{key!r}]") for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        items = [_read(value, group, f"{path}[{i}]") for i, value in enumerate(tree)]
        return items if isinstance(tree, list) else tuple(items)
    try:
        return as_representation(tree, group)  # whose message lists what is accepted
    except RepresentationError as error:
        raise AuditError(f"{path}: {error} None stands for what no group element changes.") from error


def _groups(tree: Any) -> Iterator[Group]:
    """The groups of the entries that have one of their own."""
    if isinstance(tree, (Representation, TensorAction)):
        yield tree.group
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _groups(value)
    elif isinstance(tree, (tuple, list)) and not is_irreps(tree):
        for value in tree:
            yield from _groups(value)
