"""Representations that are declared inside a model: by the user, by the irreps of an e3nn module, or by a residual."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from equirelax.auditing.elements import acts_through
from equirelax.auditing.samples import as_action
from equirelax.errors import AuditError, RepresentationError
from equirelax.files import did_you_mean
from equirelax.relaxation import Residual, relaxation_of
from equirelax.symmetry import (
    GridField,
    Group,
    On,
    Representation,
    TensorAction,
    as_representation,
    from_irreps,
)
from equirelax.symmetry.escnn import from_field_type, is_escnn
from equirelax.symmetry.given import is_given
from equirelax.symmetry.irreps import is_irreps

SPATIAL = ("SO(3)", "SE(3)", "O(3)", "E(3)")

Actions = dict[str, TensorAction]


class Declarations:
    """The declared representations of the modules of one model.

    Args:
        model: The audited model.
        group: The group of the audit. Declarations for groups through which it does not act are ignored.
        layer_reps: Path pattern -> anything that ``as_representation`` takes, for the output; or a pair (inputs, output), where
            inputs is one of these (first argument) or a sequence with one of these or ``None`` for each positional argument.

    Raises:
        AuditError: A pattern matches no module, or a value does not have this form.
    """

    def __init__(self, model: nn.Module, group: Group, layer_reps: Mapping[str, Any] | None = None) -> None:
        self.group = group
        self.by_user: dict[str, tuple[list[TensorAction | None], TensorAction | None]] = {}
        self.modules = dict(model.named_modules())
        paths = list(self.modules)
        for pattern, value in (layer_reps or {}).items():
            matched = fnmatch.filter(paths, pattern)
            if not matched:
                raise AuditError(f"layer_reps: {pattern!r} matches no module.{did_you_mean(pattern, paths)}")
            for path in matched:
                self.by_user[path] = _parse(pattern, value, group)
        # Paths are counted from this model, whichever part of it was relaxed.
        self.relaxed_at: dict[str, list[Residual]] = {}
        if any(isinstance(module, Residual) for module in model.modules()):
            for one in relaxation_of(model).entries():
                self.relaxed_at.setdefault(one.path, []).append(one.residual)
        self.residuals = {
            path: residual
            for path, several in self.relaxed_at.items()
            for residual in several
            if residual.active and residual.is_linear and not (residual.site.slot or residual.adds_to)
        }

    def field_representations(self) -> list[Representation]:
        """Representations of fields that are declared by the user, residuals or convolutions."""
        given = [action for inputs, output in self.by_user.values() for action in (*inputs, output)]
        own = [
            action
            for path, module in self.modules.items()
            for which in ("in_rep", "out_rep")
            for action in (self._site(path, which), self._convolution(module, which))
        ]
        return [action.representation for action in (*given, *own) if isinstance(action, GridField)]

    def relaxed(self, path: str) -> str:
        """Return ``relaxed, gamma = 0.3`` for a module with residuals, else an empty string."""
        found = [residual for residual in self.relaxed_at.get(path, ()) if residual.active]
        if not found:
            return ""
        ahead = {residual.adds_to for residual in found if residual.adds_to}
        where = f", added to the input of {', '.join(sorted(ahead))}" if ahead else ""
        return f"relaxed, gamma = {', '.join(f'{residual.gamma.item():.3g}' for residual in found)}{where}"

    def inputs(self, path: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> Actions:
        """Actions declared for a call's inputs, by the path of the tensor in (args, kwargs)."""
        if path in self.by_user:
            return {f"[0][{i}]": axis for i, axis in enumerate(self.by_user[path][0]) if axis is not None}
        first = (
            self._site(path, "in_rep")
            or self._convolution(module, "in_rep")
            or self._escnn(module, "in_type")
        )
        axes = [first] if first else [self._irreps(module, n) for n in ("irreps_in1", "irreps_in2")]
        if axes[0] is None:
            axes = [self._irreps(module, "irreps_in")]
        return _fitting({f"[0][{i}]": axis for i, axis in enumerate(axes)}, tensors)

    def outputs(self, path: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> Actions:
        """Actions declared for a call's outputs, by the path of the tensor in the output."""
        if path in self.by_user:
            axis = self.by_user[path][1]
            return {} if axis is None else {"": axis}
        found = (
            self._site(path, "out_rep")
            or self._convolution(module, "out_rep")
            or self._escnn(module, "out_type")
        )
        return _fitting({"": found or self._irreps(module, "irreps_out")}, tensors)

    def _site(self, path: str, which: str) -> TensorAction | None:
        residual = self.residuals.get(path)
        if residual is None:
            return None
        rep: Representation = getattr(residual, which)
        return residual.site.action(rep) if acts_through(self.group, rep.group) else None

    def _convolution(self, module: nn.Module, which: str) -> TensorAction | None:
        """The fields of a group convolution, recognised by its attributes in_rep, out_rep and kernel_size."""
        rep = getattr(module, which, None)
        if not isinstance(rep, Representation) or not hasattr(module, "kernel_size"):
            return None
        return _field(rep) if acts_through(self.group, rep.group) else None

    def _escnn(self, module: nn.Module, name: str) -> TensorAction | None:
        """The fields of an escnn module over the plane or over a point, by its in_type and out_type."""
        field_type: Any = getattr(module, name, None)
        if not is_escnn(field_type, "FieldType"):
            return None
        try:
            rep = from_field_type(field_type)
        except RepresentationError:  # its group has no counterpart here
            return None
        if not acts_through(self.group, rep.group):
            return None
        return {0: On(rep), 2: _field(rep)}.get(field_type.gspace.dimensionality)

    def _irreps(self, module: nn.Module, name: str) -> On | None:
        irreps = getattr(module, name, None)
        if not is_irreps(irreps) or self.group.name not in SPATIAL:
            return None
        return On(from_irreps(str(irreps), self.group))


def _field(rep: Representation) -> GridField | None:
    try:
        return GridField(rep)
    except RepresentationError:  # not a group of the plane
        return None


def _fitting(declared: Mapping[str, TensorAction | None], tensors: Mapping[str, Tensor]) -> Actions:
    return {
        key: action
        for key, action in declared.items()
        if action is not None and key in tensors and not action.mismatch(tensors[key].shape)
    }


def _parse(pattern: str, value: Any, group: Group) -> tuple[list[TensorAction | None], TensorAction | None]:
    if isinstance(value, tuple) and len(value) == 2 and not is_given(value):  # e3nn's Irreps are a tuple too
        inputs, output = value
        alone = inputs is None or is_given(inputs) or not isinstance(inputs, Iterable)
        several = [inputs] if alone else inputs
        return [_action(pattern, item, group) for item in several], _action(pattern, output, group)
    return [], _action(pattern, value, group)


def _action(pattern: str, value: Any, group: Group) -> TensorAction | None:
    if value is None:
        return None
    try:
        return as_action(as_representation(value, group if group.name in SPATIAL else None))
    except RepresentationError as error:
        raise AuditError(
            f"layer_reps[{pattern!r}]: {error} Give that of the output, or a pair (inputs, output)."
        ) from error
