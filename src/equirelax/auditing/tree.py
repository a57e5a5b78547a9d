"""Samples, outputs and their representations as trees that are walked together.

A *tree* is a tensor, a tuple, a list, a mapping, a dataclass, a PyG ``Data``, an escnn ``GeometricTensor``
or anything nested from these; whatever else it holds (numbers, strings, ``None``, sparse adjacency objects)
passes through untouched. A *tree of representations* has the same shape, with a
:class:`~equirelax.symmetry.Representation`, an :class:`On`, a :class:`GridField` or ``None`` (invariant) at every
tensor; ``None`` may also stand for a whole branch. Mappings and ``Data`` need to list only what transforms.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from equirelax.errors import AuditError
from equirelax.symmetry import GridField, On, Representation, TensorAction
from equirelax.symmetry.escnn import is_escnn


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One tensor of a tree: where it is, its value, and how it transforms (``None``: not at all)."""

    path: str
    value: Tensor
    action: TensorAction | None

    @property
    def measurable(self) -> bool:
        """Whether a small change of it means something: real floating tensors with at least one entry."""
        return self.value.is_floating_point() and self.value.numel() > 0


def map_tree(
    tree: Any,
    reps: Any,
    function: Callable[[Leaf], Any],
    path: str = "",
    other: Callable[[str, Any], None] | None = None,
) -> Any:
    """A tree of the same shape with ``function`` applied to every tensor; ``other`` is told of the path and value of
    everything else at its ends.

    The containers are new ones (a ``Data`` is copied), so that a model that writes into its input leaves the
    caller's sample alone; the tensors are whatever ``function`` returns.

    Raises:
        AuditError: ``reps`` does not have the shape of ``tree``, lists a name that the tree lacks, or gives a
            representation to something it cannot act on.
    """
    if isinstance(tree, Tensor):
        return function(Leaf(path, tree, _action(tree, reps, path)))
    if is_graph(tree):
        listed = _check_names(reps, tree.keys() if callable(tree.keys) else tree.keys, path, "Data")
        graph = copy.copy(tree)
        for key in list(graph.keys() if callable(graph.keys) else graph.keys):
            graph[key] = map_tree(tree[key], listed.get(key), function, _join(path, key), other)
        return graph
    if isinstance(tree, Mapping):
        listed = _check_names(reps, tree.keys(), path, type(tree).__name__)
        values = {
            key: map_tree(value, listed.get(key), function, _join(path, key), other)
            for key, value in tree.items()
        }
        return values if type(tree) is dict else _same_mapping(tree, values)
    if isinstance(tree, (tuple, list)):
        pairs = enumerate(zip(tree, _check_length(reps, tree, path), strict=True))
        items = [map_tree(value, rep, function, f"{path}[{i}]", other) for i, (value, rep) in pairs]
        if hasattr(tree, "_fields"):
            return type(tree)(*items)
        return items if isinstance(tree, list) else tuple(items)
    if is_escnn(tree, "GeometricTensor"):
        moved = map_tree(tree.tensor, reps, function, path, other)
        return type(tree)(moved, tree.type, tree.coords) if isinstance(moved, Tensor) else moved
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree)]
        listed = _check_names(reps, names, path, type(tree).__name__)
        twin = copy.copy(tree)
        for name in names:
            value = map_tree(getattr(tree, name), listed.get(name), function, _join(path, name), other)
            object.__setattr__(twin, name, value)
        return twin
    if reps is not None:
        raise AuditError(
            f"{_name(path)} is a {type(tree).__name__}, which holds no tensor for {_show(reps)} to act on: "
            "give None there, or audit a function that takes tensors"
        )
    if other is not None:
        other(path, tree)
    return tree


def leaves(tree: Any, reps: Any, what: str = "") -> list[Leaf]:
    """All tensors of a tree in order, each with its action. ``what`` begins the paths in messages ("input",
    "output").
    """
    found: list[Leaf] = []
    map_tree(tree, reps, found.append, what)
    return found


def representations(reps: Any) -> Iterator[Representation]:
    """Every representation in a tree of representations, in order, repetitions included."""
    return (action.representation for action in _actions(reps))


def field_representations(reps: Any) -> Iterator[Representation]:
    """The representations of the fields in a tree of representations."""
    return (action.representation for action in _actions(reps) if isinstance(action, GridField))


def _actions(reps: Any) -> Iterator[TensorAction]:
    if isinstance(reps, (Representation, TensorAction)):
        yield as_action(reps)
    elif isinstance(reps, Mapping):
        for value in reps.values():
            yield from _actions(value)
    elif isinstance(reps, (tuple, list)):
        for value in reps:
            yield from _actions(value)


def as_action(rep: Representation | TensorAction) -> TensorAction:
    """A representation alone acts on the last axis."""
    return On(rep) if isinstance(rep, Representation) else rep


def act(element: Tensor, value: Tensor, action: TensorAction | None) -> Tensor:
    """``rho(g) x`` in float64 (complex128) whatever the dtype of ``value``; ``value`` itself where nothing acts.

    Args:
        element: matrix of a group element, (n, n), float64.
        value: floating or complex tensor of a shape that ``action`` acts on; of a complex one real and imaginary part
            transform alike.
    """
    if action is None:
        return value
    element = element.to(value.device)
    if value.is_complex():
        parts = (action.apply(element, part.double()) for part in (value.real, value.imag))
        return torch.complex(*parts)
    return action.apply(element, value.double())


def transformed(tree: Any, reps: Any, element: Tensor | None, dtype: torch.dtype) -> Any:
    """A fresh copy of a sample: floating tensors transformed by ``element`` (``None``: the identity) and cast
    to ``dtype``.

    The action is computed in float64 and rounded once. Integer and boolean tensors are copied as they are.
    """

    def copied(leaf: Leaf) -> Tensor:
        value = leaf.value.detach()
        if not value.is_floating_point() and not value.is_complex():
            return value.clone()
        target = dtype if value.is_floating_point() else complex_of(dtype)
        if element is None or leaf.action is None:
            return value.to(target, copy=True)
        return act(element, value, leaf.action).to(target)

    return map_tree(tree, reps, copied, "input")


def _action(value: Tensor, reps: Any, path: str) -> TensorAction | None:
    if reps is None:
        return None
    if not isinstance(reps, (Representation, TensorAction)):
        raise AuditError(
            f"{_name(path)} is a tensor of shape {tuple(value.shape)}, but its representation is a "
            f"{type(reps).__name__}: give one Representation, On(representation, axis), GridField(representation) or None"
        )
    action = as_action(reps)
    if not (value.is_floating_point() or (value.is_complex() and action.representation.linear)):
        kinds = "real and complex floating" if action.representation.linear else "real floating"
        raise AuditError(
            f"{_name(path)} is {value.dtype}; {action.representation!r} acts on {kinds} tensors only: give None there"
        )
    wrong = action.mismatch(value.shape)
    if wrong:
        raise AuditError(f"{_name(path)} has shape {tuple(value.shape)}, but {wrong}")
    return action


def _check_names(reps: Any, names: Any, path: str, kind: str) -> Mapping[str, Any]:
    names = list(names)
    if reps is None:
        return {}
    if not isinstance(reps, Mapping):
        raise AuditError(
            f"{_name(path)} is a {kind}, but its representation is {_show(reps)}: give a mapping from its "
            "names "
            f"({', '.join(map(str, names))}) to representations"
        )
    for key in reps:
        if key not in names:
            close = difflib.get_close_matches(str(key), [str(name) for name in names], n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(map(str, names))}"
            raise AuditError(f"{_name(path)} has no {key!r} that a representation is given for: {hint}")
    return reps


def _check_length(reps: Any, tree: Any, path: str) -> list[Any]:
    if reps is None:
        return [None] * len(tree)
    if not isinstance(reps, (tuple, list)) or len(reps) != len(tree):
        given = f"{len(reps)} representations" if isinstance(reps, (tuple, list)) else _show(reps)
        raise AuditError(
            f"{_name(path)} is a {type(tree).__name__} of {len(tree)}, but {given} are given: give one "
            "Representation or "
            "None for each of them"
        )
    return list(reps)


def _same_mapping(tree: Mapping[str, Any], values: dict[str, Any]) -> Any:
    twin: Any = copy.copy(tree)
    try:
        twin.update(values)
    except (AttributeError, TypeError):
        return values
    return twin


def is_graph(value: Any) -> bool:
    """Whether ``value`` is a PyG ``Data`` (or ``Batch``). PyG is never imported for it: a sample can be one
    only if it was.
    """
    if "torch_geometric.data" not in sys.modules:
        return False
    from torch_geometric.data import Data
    from torch_geometric.data.data import BaseData

    if isinstance(value, Data):
        return True
    if isinstance(value, BaseData):
        raise AuditError(
            f"{type(value).__name__} is not supported as a sample: audit a function that takes its tensors "
            "and builds it"
        )
    return False


def complex_of(dtype: torch.dtype) -> torch.dtype:
    """The complex dtype that goes with a floating one; complex64 for the half-precision ones."""
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _name(path: str) -> str:
    return f"`{path}`" if path else "the sample"


def _show(reps: Any) -> str:
    return repr(reps) if isinstance(reps, (Representation, TensorAction)) else f"a {type(reps).__name__}"
