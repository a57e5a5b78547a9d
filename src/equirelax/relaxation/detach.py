"""Taking residuals off a model again, with every hook and every mark: of all of them, or of some."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from equirelax.errors import RelaxationStateError
from equirelax.relaxation.found import PLACEMENT, Found, find, roots
from equirelax.relaxation.hooks import unhook


def check_detachable(model: nn.Module, gone: Collection[Found]) -> None:
    """Check that these residuals can be taken off alone.

    Raises:
        RelaxationStateError: one of them shares hooks with residuals outside the model, or a later step of its residual
            stream stays.
    """
    going = {one.residual for one in gone}
    for one in gone:
        site, shared = one.residual.site, one.residual.shared
        if one.root is None and (shared is not None or site.adds_to is not None):
            raise RelaxationStateError(
                f"{one.key or type(model).__name__}: its residual also has a part in calls of modules around this "
                f"{type(model).__name__}: project the whole model instead"
            )
        if shared is not None and site.stream:
            members = shared.members
            later = members[members.index(one.residual) + 1 :]
            if any(member not in going for member in later):
                raise RelaxationStateError(
                    f"{one.key}: the residual stream {site.stream!r} goes on behind it; remove its later "
                    f"residuals as well"
                )


def detach(model: nn.Module, gone: Collection[Found]) -> None:
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
