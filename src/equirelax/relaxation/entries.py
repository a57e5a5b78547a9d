"""Find the residuals inside a module, with the placements that put them there, and remove them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from equirelax.errors import RelaxationStateError
from equirelax.relaxation.hooks import behind, unhook
from equirelax.relaxation.residual import Residual
from equirelax.relaxation.sites import join

if TYPE_CHECKING:
    from equirelax.relaxation.placements.placement import Placement

CHILD = "equirelax_residual"
"""Prefix of a residual's name in the module that holds it, and therefore in a state dict."""
PLACEMENT = "_equirelax_placement"
"""Attribute of a relaxed module that holds the placement that chose its residuals."""


@dataclass(frozen=True)
class Entry:
    """One residual, as seen from the model in which it was found.

    Args:
        key: Path of the relaxed module from that model, and ":slot" where it has several residuals.
        path: Path of the relaxed module from that model, "" for the model itself.
        module: The relaxed module.
        residual: The residual.
        root: Path of the module that was given to `relax`; None if that lies outside.
        has_moved: Whether the module's path has changed since it was relaxed, as after `del sequential[0]`.
    """

    key: str
    path: str
    module: nn.Module
    residual: Residual
    root: str | None
    has_moved: bool = False


def of_residual(key: str) -> bool:
    """Whether an entry of a state dict belongs to a residual, and not to the author's model."""
    return any(part.startswith(CHILD) for part in key.split("."))


def roots(model: nn.Module) -> dict[str, Placement]:
    """Path -> placement of the modules inside that were given to `relax`, outer ones first."""
    return {
        path: module.__dict__[PLACEMENT]
        for path, module in model.named_modules()
        if PLACEMENT in module.__dict__ and any(isinstance(inside, Residual) for inside in module.modules())
    }


def own_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(path, module) of every module of the model, without residuals and the modules inside them."""
    found: list[tuple[str, nn.Module]] = []
    hidden: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, Residual):
            hidden.append(path + ".")
        elif not any(path.startswith(prefix) for prefix in hidden):
            found.append((path, module))
    return found


def find(model: nn.Module) -> list[Entry]:
    """Find every residual inside a model, once and in the model's order, whichever calls of `relax` added them.

    A residual relaxes the module that has its hook. Since the call of `relax`, that module may have moved.

    Raises:
        RelaxationStateError: a residual inside belongs to a module outside, such as an `nn.Sequential` around this one; or
            modules were rearranged so that two residuals now have the same key.
    """
    residuals = [(path, module) for path, module in model.named_modules() if isinstance(module, Residual)]
    if not residuals:
        return []
    owner = _roots_of(model)
    hooked = _hooked(model)
    found: dict[str, Entry] = {}
    for place, residual in residuals:
        site, root, on = residual.site, owner.get(residual), hooked.get(residual, {})
        path = None if root is None else join(root, site.path)
        module = None if path is None else _at(model, path, on)
        has_moved = root is not None and module is None
        if module is None:
            path = _from_inside(site.path, list(on))
            module = None if path is None else on[path]
        if path is None or module is None:
            raise RelaxationStateError(
                f"{type(model).__name__} holds a residual at {place} that belongs to a module around it ({site.path!r} in "
                f"the model that was relaxed): use that module, or the whole model"
            )
        key = f"{path}:{site.slot}" if site.slot else path
        if key in found:
            raise RelaxationStateError(
                f"{type(model).__name__}: the residuals at {place} and of {found[key].module!r} are both of {key!r} since its "
                f"modules were rearranged: project first, and relax again afterwards"
            )
        found[key] = Entry(key, path, module, residual, root, has_moved)
    return list(found.values())


def _roots_of(model: nn.Module) -> dict[Residual, str]:
    """Path of the innermost relaxed module around every residual."""
    inside = {
        path: {module for module in model.get_submodule(path).modules() if isinstance(module, Residual)}
        for path in roots(model)
    }
    result: dict[Residual, str] = {}
    for path in sorted(inside, key=lambda path: len(inside[path]), reverse=True):
        result.update(dict.fromkeys(inside[path], path))
    return result


def _at(model: nn.Module, path: str, hooked: dict[str, nn.Module]) -> nn.Module | None:
    """The module at `path`, or inside wrappers there, if it has the residual's hook; else None.

    A residual without any hook, which adds nothing, stays where it was.
    """
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    while hooked and not any(module is one for one in hooked.values()):
        inside = list(module.children())
        if len(inside) != 1:
            return None
        module = inside[0]
    return module


def _hooked(model: nn.Module) -> dict[Residual, dict[str, nn.Module]]:
    """Residual -> path -> module, for the modules that have the residual's hook (`Residual.hook`), under all their names."""
    result: dict[Residual, dict[str, nn.Module]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for hook in behind(module):
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Residual) and hook == owner.hook:
                result.setdefault(owner, {})[path] = module
    return result


def _from_inside(path: str, hooked: list[str]) -> str | None:
    """Find the relaxed module's path among `hooked`, when the site's path was counted from a module outside this model."""
    same = [own for own in hooked if own in ("", path) or path.endswith(f".{own}")]
    return next(iter(same or hooked), None)


def check_detachable(model: nn.Module, gone: Collection[Entry]) -> None:
    """Check that these residuals can be removed without others.

    Raises:
        RelaxationStateError: one of them shares hooks with residuals outside the model, or a later residual of its stream
            is to stay.
    """
    going = {one.residual for one in gone}
    for one in gone:
        residual = one.residual
        if one.root is None and (residual.shared is not None or residual.adds_to is not None):
            raise RelaxationStateError(
                f"{one.key or type(model).__name__}: its residual also takes part in calls of modules around this "
                f"{type(model).__name__}: project the whole model instead"
            )
        if any(later not in going for later in residual.dependents):
            raise RelaxationStateError(f"{one.key}: later residuals build on it; remove these as well")


def detach(model: nn.Module, gone: Collection[Entry]) -> None:
    """Remove these residuals and their hooks. If all are removed, the model is the author's own again."""
    check_detachable(model, gone)
    marked = {path: model.get_submodule(path) for path in roots(model)}
    take_off(model, [one.residual for one in gone])
    left = set(_roots_of(model).values())
    for path, module in marked.items():
        if path not in left:
            del module.__dict__[PLACEMENT]


def take_off(model: nn.Module, residuals: Iterable[Residual]) -> None:
    """Remove residuals and their hooks, also if they were only partly attached."""
    residuals = set(residuals)
    owners: set[Any] = set(residuals)
    for residual in residuals:
        if residual.shared is not None:
            if residual in residual.shared.members:
                residual.shared.members.remove(residual)
            if not residual.shared.members:
                owners.add(residual.shared)
    for module in list(model.modules()):
        unhook(module, owners)
        for name, child in list(module._modules.items()):
            if child in residuals:
                del module._modules[name]  # wrappers of torch.compile would look for it in the module inside
