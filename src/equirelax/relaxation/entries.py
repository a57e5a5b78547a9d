"""The residuals inside a module: finding them with the placements that put them there, and taking them off again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from equirelax.errors import RelaxationStateError
from equirelax.relaxation.hooks import owners, unhook
from equirelax.relaxation.residual import Residual
from equirelax.relaxation.sites import join

if TYPE_CHECKING:
    from equirelax.relaxation.placements.placement import Placement

CHILD = "equirelax_residual"
"""Beginning of the name that a residual has in the module that holds it, and so in a state dict."""
PLACEMENT = "_equirelax_placement"
"""Attribute of a module that was relaxed: the placement that chose its residuals."""


@dataclass(frozen=True)
class Entry:
    """One residual, as seen from the module through which one looks.

    Args:
        key: Path of the relaxed module from there, and ":slot" where it has several residuals.
        path: Path of the relaxed module from there, "" for the module itself.
        module: The relaxed module.
        residual: The residual.
        root: Path of the module that was given to `relax`; None where that lies outside.
    """

    key: str
    path: str
    module: nn.Module
    residual: Residual
    root: str | None


def of_residual(key: str) -> bool:
    """Whether an entry of a state dict belongs to a residual, and not to the author's model."""
    return any(part.startswith(CHILD) for part in key.split("."))


def roots(model: nn.Module) -> dict[str, Placement]:
    """Path -> placement of the modules inside that were relaxed (given to `relax`), outer ones first."""
    return {
        path: module.__dict__[PLACEMENT]
        for path, module in model.named_modules()
        if PLACEMENT in module.__dict__ and any(isinstance(inside, Residual) for inside in module.modules())
    }


def own_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(path, module) of every module of the model, residuals and what lies inside them left out."""
    found: list[tuple[str, nn.Module]] = []
    hidden: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, Residual):
            hidden.append(path + ".")
        elif not any(path.startswith(prefix) for prefix in hidden):
            found.append((path, module))
    return found


def find(model: nn.Module) -> list[Entry]:
    """Every residual inside a model once, in the model's order, whoever relaxed which part of it.

    Raises:
        RelaxationStateError: a residual inside belongs to a module outside, such as an `nn.Sequential` around this one.
    """
    residuals = [(path, module) for path, module in model.named_modules() if isinstance(module, Residual)]
    if not residuals:
        return []
    owner = _roots_of(model)
    hooked = _hooked(model)
    found = []
    for place, residual in residuals:
        site, root = residual.site, owner.get(residual)
        path = None if root is None else _below(model, root, site.path)
        if path is None:
            root, path = None, _from_inside(site.path, hooked.get(residual, []))
        if path is None:
            raise RelaxationStateError(
                f"{type(model).__name__} holds a residual at {place} that belongs to a module around it ({site.path!r} in "
                f"the model that was relaxed): look through that one, or through the whole model"
            )
        key = f"{path}:{site.slot}" if site.slot else path
        found.append(Entry(key, path, model.get_submodule(path), residual, root))
    return found


def _roots_of(model: nn.Module) -> dict[Residual, str]:
    """The innermost relaxed module around every residual: a module that holds residuals is not relaxed again."""
    inside = {
        path: {module for module in model.get_submodule(path).modules() if isinstance(module, Residual)}
        for path in roots(model)
    }
    result: dict[Residual, str] = {}
    for path in sorted(inside, key=lambda path: len(inside[path]), reverse=True):
        result.update(dict.fromkeys(inside[path], path))
    return result


def _below(model: nn.Module, root: str, path: str) -> str | None:
    """The path from the model of what lies at `path` in a relaxed module; None where that was rebuilt since."""
    try:
        model.get_submodule(join(root, path))
    except AttributeError:
        return None
    return join(root, path)


def _hooked(model: nn.Module) -> dict[Residual, list[str]]:
    """Paths, under all their names, of the modules on which every residual has a hook."""
    result: dict[Residual, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for owner in owners(module):
            if isinstance(owner, Residual):
                result.setdefault(owner, []).append(path)
    return result


def _from_inside(path: str, hooked: list[str]) -> str | None:
    """The relaxed module among those that have the hooks, where the module to which its site's path leads is outside."""
    same = [own for own in hooked if own in ("", path) or path.endswith(f".{own}")]
    return next(iter(same or hooked), None)


def check_detachable(model: nn.Module, gone: Collection[Entry]) -> None:
    """Check that these residuals can be taken off alone.

    Raises:
        RelaxationStateError: one of them shares hooks with residuals outside the model, or a later step of its residual
            stream stays.
    """
    going = {one.residual for one in gone}
    for one in gone:
        residual = one.residual
        if one.root is None and (residual.shared is not None or residual.adds_to is not None):
            raise RelaxationStateError(
                f"{one.key or type(model).__name__}: its residual also has a part in calls of modules around this "
                f"{type(model).__name__}: project the whole model instead"
            )
        if any(later not in going for later in residual.dependents):
            raise RelaxationStateError(f"{one.key}: later residuals build on it; remove these as well")


def detach(model: nn.Module, gone: Collection[Entry]) -> None:
    """Remove these residuals of a model with their hooks; where all are removed the model is the author's own again."""
    check_detachable(model, gone)
    residuals = {one.residual for one in gone}
    owners: set[Any] = set(residuals)
    for residual in residuals:
        if residual.shared is not None:
            residual.shared.members.remove(residual)
            if not residual.shared.members:
                owners.add(residual.shared)
    marked = {path: model.get_submodule(path) for path in roots(model)}
    for module in list(model.modules()):
        unhook(module, owners)
        for name, child in list(module.named_children()):
            if child in residuals:
                delattr(module, name)
    left = {one.root for one in find(model)}
    for path, module in marked.items():
        if path not in left:
            del module.__dict__[PLACEMENT]
