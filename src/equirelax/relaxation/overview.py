"""The rows of a summary: every module of a model, whether it is relaxed, and why or why not."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from equirelax.relaxation.entries import Entry, roots
from equirelax.relaxation.placements.placement import own_modules
from equirelax.relaxation.sites import join
from equirelax.relaxation.summary import RELAXED, SKIPPED, UNKNOWN, Row


def rows(model: nn.Module, found: Sequence[Entry]) -> tuple[Row, ...]:
    """One row for every module of the model, one more for every further residual of a module."""
    relaxed: dict[int, list[Entry]] = {}
    for one in found:
        relaxed.setdefault(id(one.module), []).append(one)
    left = _left(model, found)
    names = _names(model)
    result: list[Row] = []
    relaxed_above: list[str] = []
    for path, module in own_modules(model):
        kind, also = type(module).__name__, _also(names[id(module)])
        for one in relaxed.get(id(module), ()):
            result.append(_row(one, kind, also))
        if id(module) in relaxed:
            relaxed_above.append(f"{path}." if path else "")
            continue
        inside = [above for above in relaxed_above if path.startswith(above)]
        if id(module) in left:
            status, reason = left[id(module)]
        elif inside:
            status, reason = SKIPPED, f"inside {inside[-1].rstrip('.') or 'the model'}, which is relaxed"
        elif any(True for _ in module.parameters(recurse=False)):
            status, reason = UNKNOWN, "has parameters, but no layer family knows it and nothing declares it"
        elif any(True for _ in module.children()):
            status, reason = SKIPPED, "container: its children have rows of their own"
        else:
            status, reason = SKIPPED, "has no parameters"
        result.append(Row(path, kind, status, reason + also))
    return tuple(result)


def _row(one: Entry, kind: str, also: str) -> Row:
    site = one.residual.site
    why = site.why(one.root or "")
    shape = (site.out_rep.dim, site.in_rep.dim)
    count = sum(parameter.numel() for parameter in one.residual.map.parameters())
    return Row(one.key, kind, RELAXED, why + also, shape, count, site.relaxes)


def _left(model: nn.Module, found: Sequence[Entry]) -> dict[int, tuple[str, str]]:
    """What the placements left alone, and what was removed since: id of the module -> (status, reason)."""
    present = {one.key for one in found}
    placements = roots(model)
    result: dict[int, tuple[str, str]] = {}
    inside: set[int] = set()
    for root, placement in placements.items():
        module = model.get_submodule(root)
        inside.update(map(id, module.modules()))
        survey = placement.survey(module)
        for path, reason in survey.left.items():
            result[id(module.get_submodule(path))] = reason
        for placed in survey.placed:
            if join(root, placed.site.key) not in present:
                owner = module.get_submodule(placed.site.path)
                result[id(owner)] = (SKIPPED, "its residual was removed")
    if placements:
        for module in model.modules():
            if id(module) not in inside and any(True for _ in module.parameters(recurse=False)):
                result[id(module)] = (SKIPPED, f"outside {' and '.join(placements)}: what was relaxed")
    return result


def _names(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(path)
    return names


def _also(names: list[str]) -> str:
    """Words for the further names of a module that the model holds under several."""
    return f"; the same module as {', '.join(names[1:])}" if len(names) > 1 else ""
