"""Samples, outputs and their representations as trees that are walked together, and calls of a model with a sample.

A *tree* is a tensor, a tuple, a list, a mapping, a dataclass, a PyG ``Data``, an escnn ``GeometricTensor`` or any nesting
of these. Everything else in it (numbers, strings, ``None``, sparse adjacency objects) passes through unchanged. A
*tree of representations* has the same shape, with a :class:`~equirelax.symmetry.Representation`, an :class:`On`, a
:class:`GridField` or ``None`` (invariant) at every tensor; ``None`` may also stand for a whole branch. For a mapping or a
``Data`` it needs to list only the entries that transform.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import dis
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from equirelax.auditing.elements import contains
from equirelax.errors import AuditError, RepresentationError
from equirelax.symmetry import (
    SE,
    SO,
    E,
    GridField,
    Group,
    O,
    On,
    Representation,
    TensorAction,
    as_representation,
)
from equirelax.symmetry.escnn import is_escnn
from equirelax.symmetry.given import is_given
from equirelax.symmetry.irreps import is_irreps

EXACT = 2**53
"""Integers up to this are exact in float64, in which actions are computed."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One tensor of a tree: its path, its value, and how it transforms (``None``: it does not)."""

    path: str
    value: Tensor
    action: TensorAction | None

    @property
    def measurable(self) -> bool:
        """Whether a small change of the tensor is meaningful: it is real and floating, with at least one entry."""
        return self.value.is_floating_point() and self.value.numel() > 0


def map_tree(
    tree: Any,
    reps: Any,
    function: Callable[[Leaf], Any],
    path: str = "",
    other: Callable[[str, Any], None] | None = None,
) -> Any:
    """Apply ``function`` to every tensor of a tree and ``other`` to the path and value of every other leaf.

    The returned tree has new containers (a ``Data`` is copied), so that a model that writes into its input does not change the
    caller's sample. Its tensors are the results of ``function``.

    Raises:
        AuditError: ``reps`` does not have the shape of ``tree``, lists a name that the tree lacks, or gives a representation to
            something that it cannot act on.
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
            "give None there, or audit a function that takes and returns tensors"
        )
    if other is not None:
        other(path, tree)
    return tree


def leaves(tree: Any, reps: Any, what: str = "") -> list[Leaf]:
    """List all tensors of a tree in order, each with its action. Paths begin with ``what`` ("input", "output")."""
    found: list[Leaf] = []
    map_tree(tree, reps, found.append, what)
    return found


def representations(reps: Any) -> Iterator[Representation]:
    """Yield every representation in a tree of representations, in order and with repetitions."""
    return (action.representation for action in _actions(reps))


def field_representations(reps: Any) -> Iterator[Representation]:
    """Yield the representations of the fields in a tree of representations."""
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
    """Let a bare representation act on the last axis."""
    return On(rep) if isinstance(rep, Representation) else rep


def act(element: Tensor, value: Tensor, action: TensorAction | None) -> Tensor:
    """Compute ``rho(g) x`` in float64 (complex128), whatever the dtype of ``value``; return ``value`` if nothing acts.

    Args:
        element: Matrix of a group element, (n, n), float64.
        value: Tensor of a shape that ``action`` acts on. Real and imaginary parts transform alike. Integers and booleans keep
            their dtype.
    """
    if action is None:
        return value
    element = element.to(value.device)
    if value.is_complex():
        parts = (action.apply(element, part.double()) for part in (value.real, value.imag))
        return torch.complex(*parts)
    if not value.is_floating_point():
        return action.apply(element, value.double()).round().to(value.dtype)
    return action.apply(element, value.double())


def transformed(tree: Any, reps: Any, element: Tensor | None, dtype: torch.dtype) -> Any:
    """Copy a sample, with its floating tensors transformed by ``element`` (``None``: the identity) and cast to ``dtype``.

    The action is computed in float64 and rounded once. Integers and booleans, which are only permuted, keep their dtype.
    Copies require gradients if the tensors of the sample do.
    """

    def copied(leaf: Leaf) -> Tensor:
        value = leaf.value.detach()
        moved = value if element is None else act(element, value, leaf.action)
        if not value.is_floating_point() and not value.is_complex():
            return moved.clone()
        target = dtype if value.is_floating_point() else complex_of(dtype)
        return moved.to(target, copy=True).requires_grad_(leaf.value.requires_grad)

    return map_tree(tree, reps, copied, "input")


@dataclasses.dataclass(frozen=True)
class Case:
    """The subject of a measurement: a model at a sample.

    Attributes:
        model: A module or a function.
        sample: Its input, see `call`.
        in_rep: How the group acts on the sample, as a tree of representations.
        out_rep: How the group acts on the output.
        group: The group that elements are taken from.
        dtype: Precision in which the model runs.
    """

    model: Any
    sample: Any
    in_rep: Any
    out_rep: Any
    group: Group
    dtype: torch.dtype = torch.float64

    def moved(self, element: Tensor | None = None) -> Any:
        """Return a new copy of the sample in `dtype`, transformed by an element."""
        return transformed(self.sample, self.in_rep, element, self.dtype)


def _action(value: Tensor, reps: Any, path: str) -> TensorAction | None:
    if reps is None:
        return None
    if not isinstance(reps, (Representation, TensorAction)):
        raise AuditError(
            f"{_name(path)} is a tensor of shape {tuple(value.shape)}, but its representation is a "
            f"{type(reps).__name__}: give one Representation, On(representation, axis), GridField(representation) or None"
        )
    action = as_action(reps)
    if value.is_complex() and not action.representation.linear:
        raise AuditError(
            f"{_name(path)} is {value.dtype}; {action.representation!r} acts on real tensors only"
        )
    if not (value.is_floating_point() or value.is_complex() or _permutes(action.representation)):
        raise AuditError(
            f"{_name(path)} is {value.dtype}; {action.representation!r} acts on floating tensors only: give None if no element "
            "changes it, else audit a function that casts it"
        )
    if value.dtype in (torch.int64, torch.uint64) and bool((value.abs() > EXACT).any()):
        raise AuditError(
            f"{_name(path)} has whole numbers above {EXACT}, which are not moved exactly: renumber them"
        )
    wrong = action.mismatch(value.shape)
    if wrong:
        raise AuditError(f"{_name(path)} has shape {tuple(value.shape)}, but {wrong}")
    return action


def _permutes(rep: Representation) -> bool:
    """Whether every element only permutes entries, so that it also acts on integers and booleans."""
    if rep.group.algebra_dim:
        return rep.invariant
    matrices = rep.discrete()
    return bool(((matrices == 0) | (matrices == 1)).all())


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
            f"{_name(path)} is a {type(tree).__name__} of {len(tree)}, which does not fit {given}: give "
            "one Representation or None for each of them (on the command line, repeat the flag, with invariant for None)"
        )
    return list(reps)


def _same_mapping(tree: Mapping[str, Any], values: dict[str, Any]) -> Any:
    try:
        twin: Any = copy.copy(tree)
        twin.update(values)
    except Exception:  # a third-party class may reject either, with any error
        return values
    return twin


def is_graph(value: Any) -> bool:
    """Whether ``value`` is a PyG ``Data`` or ``Batch``. This does not import PyG: if it is not imported, no sample is one."""
    if "torch_geometric.data" not in sys.modules:
        return False
    from torch_geometric.data import Data
    from torch_geometric.data.data import BaseData

    if isinstance(value, Data):
        return True
    if isinstance(value, BaseData):
        raise AuditError(
            f"{type(value).__name__} is not supported: audit a function that takes its tensors and builds it, or returns them"
        )
    return False


def complex_of(dtype: torch.dtype) -> torch.dtype:
    """The complex dtype that corresponds to a floating dtype; complex64 for half precision."""
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _name(path: str) -> str:
    return f"`{path}`" if path else "the sample"


def _show(reps: Any) -> str:
    return repr(reps) if isinstance(reps, (Representation, TensorAction)) else f"a {type(reps).__name__}"


class Function(nn.Module):
    """A plain function as a module. The modules that it uses are its children, and run in the measuring state like a model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        for name, module in _reached(function):
            name = re.sub(r"\W", "_", name)
            while hasattr(self, name):
                name += "_"
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def _reached(function: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) for the modules that a function is bound to, closes over, reads as globals or holds in a partial."""
    if isinstance(function, functools.partial):
        yield from _reached(function.func)
        held = {**{f"argument_{i}": value for i, value in enumerate(function.args)}, **function.keywords}
        if isinstance(function.func, nn.Module):
            held["func"] = function.func
    elif inspect.ismethod(function):
        owner = function.__self__
        held = {"owner": owner} if isinstance(owner, nn.Module) else dict(getattr(owner, "__dict__", {}))
        yield from _reached(function.__func__)
    elif inspect.isfunction(function):
        held = {**_globals_of(function), **_closure_of(function)}
    else:
        held = dict(getattr(function, "__dict__", {}))
    yield from ((name, value) for name, value in held.items() if isinstance(value, nn.Module))


def _globals_of(function: Any) -> dict[str, Any]:
    """The globals that a function reads by name, without attribute names, which look the same in its code."""
    read = [
        step.argval for step in dis.get_instructions(function) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    ]
    return {name: function.__globals__[name] for name in read if name in function.__globals__}


def _closure_of(function: Any) -> dict[str, Any]:
    """The variables with a value that a function closes over."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            found[name] = cell.cell_contents
    return found


def call(model: nn.Module | Callable[..., Any], sample: Any) -> Any:
    """Call ``model(*sample)`` for a tuple or list, ``model(**sample)`` for a mapping of keywords, else ``model(sample)``."""
    if takes_keywords(model, sample):
        return model(**sample)
    if isinstance(sample, (tuple, list)):
        return model(*sample)
    return model(sample)


def takes_keywords(model: nn.Module | Callable[..., Any], sample: Any) -> bool:
    """Whether a sample is a mapping whose keys are parameters of the model's forward.

    Any other mapping, and PyG ``Data``, is passed as one argument. Keys that the forward does not name count as keywords only if
    it has ``**kwargs``.
    """
    if not isinstance(sample, Mapping) or is_graph(sample) or not all(isinstance(key, str) for key in sample):
        return False
    try:
        parameters = inspect.signature(_forward(model)).parameters.values()
    except (TypeError, ValueError):  # functions written in C, none of which takes a mapping
        return True
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    needed = {p.name for p in parameters if p.name in named and p.default is p.empty}
    rest = any(p.kind == p.VAR_KEYWORD for p in parameters)
    passes_on = not named and rest and any(p.kind == p.VAR_POSITIONAL for p in parameters)
    if passes_on and isinstance(model, nn.Module) and not isinstance(model, Function):
        inside = list(model.children())
        if len(inside) == 1:
            return takes_keywords(inside[0], sample)
    return needed <= set(sample) and (rest or set(sample) <= named)


def as_arguments(model: nn.Module | Callable[..., Any], sample: Any, tree: Any) -> tuple[Any, Any]:
    """Split a tree with the shape of the sample (the sample or its representations) into (args, kwargs)."""
    if takes_keywords(model, sample):
        return ((), tree or {})
    if isinstance(sample, (tuple, list)):
        return (tuple(tree) if tree is not None else (None,) * len(sample), {})
    return ((tree,), {})


def _forward(model: Any) -> Callable[..., Any]:
    """The forward that receives the arguments, inside wrappers that pass everything on."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        elif isinstance(model, nn.Sequential) and len(model):
            model = model[0]
        elif isinstance(model, Function):
            model = model.function
        else:
            return model.forward if isinstance(model, nn.Module) else model


class _FromModel:
    """The type of `FROM_MODEL`, the default for representations."""

    def __repr__(self) -> str:
        return "FROM_MODEL"


FROM_MODEL: Final[Any] = _FromModel()
"""Read the representation from the model's own attributes. None would mean that nothing transforms."""

_ATTRIBUTES = {
    "in_rep": (("irreps_in",), ("irreps_in1", "irreps_in2"), ("in_type",), ("in_rep",)),
    "out_rep": (("irreps_out",), ("out_type",), ("out_rep",)),
}


def read_representations(
    in_rep: Any, out_rep: Any, group: Group | None, model: Any = None
) -> tuple[Any, Any]:
    """Convert every entry of both trees to a `Representation`, `On`, `GridField` or None.

    Irreps belong to `group` if that is SO(3), O(3), SE(3) or E(3), else to the first such group of another entry, else to O(3).

    Raises:
        AuditError: An entry is not a representation, or a tree is `FROM_MODEL` and `model` has no attribute for it.
    """
    trees = {
        name: model_representations(model, name) if tree is FROM_MODEL else tree
        for name, tree in (("in_rep", in_rep), ("out_rep", out_rep))
    }
    groups = [group, *(found for tree in trees.values() for found in _groups(tree))]
    spatial = next((found for found in groups if isinstance(found, (SO, O, SE, E)) and found.n == 3), None)
    return tuple(_read(tree, spatial, name) for name, tree in trees.items())  # type: ignore[return-value]


def model_representations(model: Any, name: str) -> Any:
    """Read the tree from a model's attributes: ``irreps_in``, ``in_type`` or ``in_rep``, and likewise for the output.

    A network that takes a dict has a mapping from names to irreps there.

    Raises:
        AuditError: The model has none of these attributes.
    """
    bare = model
    while isinstance(bare, (nn.parallel.DistributedDataParallel, nn.DataParallel)) or hasattr(
        bare, "_orig_mod"
    ):
        bare = bare.module if hasattr(bare, "module") else bare._orig_mod
    for attributes in _ATTRIBUTES[name]:
        values = [getattr(bare, attribute, None) for attribute in attributes]
        if all(map(_is_representation, values)):
            return tuple(values) if len(values) > 1 else values[0]
    what = "input" if name == "in_rep" else "output"
    looked = ", ".join("/".join(attributes) for attributes in _ATTRIBUTES[name])
    raise AuditError(
        f"{name} is not given, and {type(bare).__name__} has no attribute for it ({looked}): give the {what}'s "
        "representation, such as '2x0e+1x1o' or vector(O(3)), or None for what no group element changes"
    )


def only_present(tree: Any, reps: Any) -> Any:
    """Restrict a model's own mapping from names to representations to the names that are present."""
    if isinstance(reps, Mapping) and isinstance(tree, Mapping):
        return {key: rep for key, rep in reps.items() if key in tree}
    return reps


def group_of(in_rep: Any, out_rep: Any) -> Group:
    """The group of the first representation in the two trees.

    Raises:
        AuditError: There is no representation.
    """
    for rep in (*representations(in_rep), *representations(out_rep)):
        return rep.group
    raise AuditError("nothing transforms: in_rep and out_rep hold no representation, and no group is given")


def common_group(group: Group | None, in_rep: Any, out_rep: Any) -> Group:
    """Choose the group that elements are taken from: the given one, or that of the representations.

    Raises:
        AuditError: There is neither, or a representation is of a group that does not contain it.
    """
    chosen = group or group_of(in_rep, out_rep)
    for rep in (*representations(in_rep), *representations(out_rep)):
        if not contains(rep.group, chosen):
            raise AuditError(
                f"{rep!r} is a representation of {rep.group.name}, which does not contain {chosen.name}: give all "
                "representations for one group, or for one that contains it"
            )
    return chosen


def _is_representation(value: Any) -> bool:
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
        return as_representation(tree, group)  # its message lists what is accepted
    except RepresentationError as error:
        raise AuditError(f"{path}: {error} Use None for what no group element changes.") from error


def _groups(tree: Any) -> Iterator[Group]:
    """Yield the groups of the entries that have a group."""
    if isinstance(tree, (Representation, TensorAction)):
        yield tree.group
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _groups(value)
    elif isinstance(tree, (tuple, list)) and not is_irreps(tree):
        for value in tree:
            yield from _groups(value)
