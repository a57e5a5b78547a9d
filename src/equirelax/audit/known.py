"""Representations inside a model that somebody has declared: the user, an e3nn module's irreps, a relaxed
layer's site.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.audit.tree import Axis
from equirelax.errors import AuditError
from equirelax.files import did_you_mean
from equirelax.relaxation import Residual
from equirelax.symmetry import Group, Representation

SPATIAL = ("SO(3)", "SE(3)", "O(3)", "E(3)")

Declared = dict[str, Axis]


class Known:
    """What is declared about the modules of one model.

    Args:
        model: the audited model.
        group: the group of the audit; declarations for groups that it does not act through are ignored.
        layer_reps: path pattern -> output's ``Representation`` or ``Axis``, or (inputs, output), inputs being
            one of these (first argument) or a sequence with one of these or ``None`` for each positional
            argument.

    Raises:
        AuditError: a pattern matches no module, or a value is not of this form.
    """

    def __init__(self, model: nn.Module, group: Group, layer_reps: Mapping[str, Any] | None = None) -> None:
        self.group = group
        self.given: dict[str, tuple[list[Axis | None], Axis | None]] = {}
        paths = [path for path, _ in model.named_modules()]
        for pattern, value in (layer_reps or {}).items():
            matched = fnmatch.filter(paths, pattern)
            if not matched:
                raise AuditError(f"layer_reps: {pattern!r} matches no module.{did_you_mean(pattern, paths)}")
            for path in matched:
                self.given[path] = _parse(pattern, value)
        self.residuals: dict[str, Residual] = {}
        self.strengths: dict[str, list[float]] = {}
        for module in model.modules():
            if isinstance(module, Residual) and module.enabled:
                self.strengths.setdefault(module.site.path, []).append(module.gamma.item())
            if isinstance(module, Residual) and not module.site.slot and module.is_linear:
                self.residuals[module.site.path] = module

    def relaxed(self, path: str) -> str:
        """``relaxed, gamma = 0.3`` for a module with residuals, else nothing."""
        found = self.strengths.get(path)
        return f"relaxed, gamma = {', '.join(f'{gamma:.3g}' for gamma in found)}" if found else ""

    def inputs(self, path: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> Declared:
        """Declared actions of a call's inputs, by the path of the tensor in (args, kwargs)."""
        if path in self.given:
            return {f"[0][{i}]": axis for i, axis in enumerate(self.given[path][0]) if axis is not None}
        first = self._site(path, "in_rep")
        axes = [first] if first else [self._irreps(module, n) for n in ("irreps_in1", "irreps_in2")]
        if axes[0] is None:
            axes = [self._irreps(module, "irreps_in")]
        return _fitting({f"[0][{i}]": axis for i, axis in enumerate(axes)}, tensors)

    def outputs(self, path: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> Declared:
        """Declared actions of a call's outputs, by the path of the tensor in the output."""
        if path in self.given:
            axis = self.given[path][1]
            return {} if axis is None else {"": axis}
        return _fitting({"": self._site(path, "out_rep") or self._irreps(module, "irreps_out")}, tensors)

    def _site(self, path: str, which: str) -> Axis | None:
        residual = self.residuals.get(path)
        if residual is None:
            return None
        rep: Representation = getattr(residual, which)
        return Axis(rep, residual.feature_axis) if acts_through(self.group, rep.group) else None

    def _irreps(self, module: nn.Module, name: str) -> Axis | None:
        irreps = getattr(module, name, None)
        if type(irreps).__name__ != "Irreps" or self.group.name not in SPATIAL:
            return None
        from equirelax.symmetry import from_irreps

        return Axis(from_irreps(str(irreps), self.group))


def acts_through(group: Group, other: Group) -> bool:
    """Whether elements of ``group``, or their linear parts, are elements of ``other``: checked on a few drawn
    ones.
    """
    elements = torch.cat((group.sample(8, generator=torch.Generator().manual_seed(1)), group.discrete()))
    if other.dim != group.dim:
        elements = group.linear_part(elements)
    return elements.shape[-1] == other.dim and bool(other.contains(elements, atol=1e-6).all())


def _fitting(declared: Mapping[str, Axis | None], tensors: Mapping[str, Tensor]) -> Declared:
    return {
        key: axis
        for key, axis in declared.items()
        if axis is not None
        and key in tensors
        and -tensors[key].dim() <= axis.axis < tensors[key].dim()
        and tensors[key].shape[axis.axis] == axis.representation.dim
    }


def _parse(pattern: str, value: Any) -> tuple[list[Axis | None], Axis | None]:
    if isinstance(value, tuple) and len(value) == 2:
        inputs, output = value
        several = (
            inputs
            if isinstance(inputs, Iterable) and not isinstance(inputs, (Representation, Axis))
            else [inputs]
        )
        return [_axis(pattern, item) for item in several], _axis(pattern, output)
    return [], _axis(pattern, value)


def _axis(pattern: str, value: Any) -> Axis | None:
    if value is None or isinstance(value, Axis):
        return value
    if isinstance(value, Representation):
        return Axis(value)
    raise AuditError(
        f"layer_reps[{pattern!r}] holds a {type(value).__name__}: give the output's Representation or "
        "Axis, or (inputs, output)"
    )
