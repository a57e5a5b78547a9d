"""The hooks that a relaxation puts on modules: find them by their owners, suspend them, remove them.

Every hook of a relaxation is a bound method of a `HookOwner`: a residual, or an object that several residuals share. This
distinguishes it from the author's own hooks. In a copy or an unpickled model the hooks are bound to the copy.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

PARKED = "_equirelax_parked"
_LOCK = threading.RLock()


class HookOwner:
    """Base class of objects whose bound methods are hooks on a model's modules."""


@dataclass
class _Parked:
    """Hooks that are temporarily off a module.

    Attributes:
        depth: Number of blocks that keep them off.
        orders, taken, marks: For each of the module's hook tables, the order of its keys before, the hooks that were taken
            out, and their entries in the dictionaries that accompany the table.
    """

    depth: int = 1
    orders: list[list[int]] = field(default_factory=list)
    taken: list[dict[int, Any]] = field(default_factory=list)
    marks: list[list[dict[int, Any]]] = field(default_factory=list)


def _tables(module: nn.Module) -> tuple[tuple[Any, tuple[Any, ...]], ...]:
    """The module's tables of call hooks, each with the dictionaries that say how its hooks are called."""
    return (
        (module._forward_hooks, (module._forward_hooks_with_kwargs, module._forward_hooks_always_called)),
        (module._forward_pre_hooks, (module._forward_pre_hooks_with_kwargs,)),
    )


def _owner(hook: Callable[..., Any]) -> HookOwner | None:
    owner = getattr(hook, "__self__", None)
    return owner if isinstance(owner, HookOwner) else None


def owners(module: nn.Module) -> Iterator[HookOwner]:
    """Yield the owners of the hooks that a relaxation has on this module, also while they are off."""
    parked: _Parked | None = module.__dict__.get(PARKED)
    tables = [table for table, _ in _tables(module)] + ([] if parked is None else parked.taken)
    for table in tables:
        for hook in list(table.values()):
            if (owner := _owner(hook)) is not None:
                yield owner


def behind(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """Yield a relaxation's hooks on this module that run after its forward, also while they are off."""
    parked: _Parked | None = module.__dict__.get(PARKED)
    for table in (module._forward_hooks, {} if parked is None else parked.taken[0]):
        yield from (hook for hook in list(table.values()) if _owner(hook) is not None)


def park(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Take a relaxation's hooks off the modules, and return the modules that have any, for `unpark`.

    Blocks may be nested, and may overlap in several threads: the last `unpark` puts the hooks back.
    """
    held = []
    with _LOCK:
        for module in modules:
            parked: _Parked | None = module.__dict__.get(PARKED)
            if parked is not None:
                parked.depth += 1
            elif any(True for _ in owners(module)):
                module.__dict__[PARKED] = _take(module)
            else:
                continue
            held.append(module)
    return held


def _take(module: nn.Module) -> _Parked:
    parked = _Parked()
    for table, marks in _tables(module):
        parked.orders.append(list(table))
        taken = {key: table.pop(key) for key in list(table) if _owner(table[key]) is not None}
        parked.taken.append(taken)
        parked.marks.append([{key: mark.pop(key) for key in taken if key in mark} for mark in marks])
    return parked


def unpark(modules: Iterable[nn.Module], all_blocks: bool = False) -> None:
    """Put the hooks back in their old order among the others, once no block keeps them off any more.

    Args:
        modules: The result of `park`.
        all_blocks: Put them back whatever blocks are open, as in a copy that was made inside one.
    """
    with _LOCK:
        for module in modules:
            parked: _Parked | None = module.__dict__.get(PARKED)
            if parked is None:
                continue
            parked.depth -= 1
            if parked.depth <= 0 or all_blocks:
                del module.__dict__[PARKED]
                _put_back(module, parked)


def _put_back(module: nn.Module, parked: _Parked) -> None:
    for (table, marks), order, taken, flags in zip(
        _tables(module), parked.orders, parked.taken, parked.marks, strict=True
    ):
        present = {**table, **taken}
        # Handles of hooks refer to the dictionary itself, so it is refilled and not replaced.
        first = [key for key in order if key in present]
        ordered = {key: present[key] for key in (*first, *(key for key in table if key not in order))}
        table.clear()
        table.update(ordered)
        for mark, flag in zip(marks, flags, strict=True):
            mark.update(flag)


def unhook(module: nn.Module, gone: set[Any]) -> None:
    """Remove the hooks of these owners from a module, also those that are temporarily off."""
    parked: _Parked | None = module.__dict__.get(PARKED)
    for table, marks in _tables(module):
        _remove(table, marks, gone)
    if parked is not None:
        for taken, flags in zip(parked.taken, parked.marks, strict=True):
            _remove(taken, flags, gone)
        if not any(parked.taken):
            del module.__dict__[PARKED]


def _remove(table: Any, marks: Iterable[Any], gone: set[Any]) -> None:
    for key, hook in list(table.items()):
        if _owner(hook) in gone:
            del table[key]
            for mark in marks:
                mark.pop(key, None)


def guard_hooks(compiled_before: bool = False) -> None:
    """Make `torch.compile` check the hooks of modules before it reuses compiled code.

    By default it does not. A relaxed model would then run the code compiled for an unrelaxed model of the same classes, or
    for itself inside `strict()`, and vice versa.

    Args:
        compiled_before: Discard all code that the process compiled without this check. It is compiled again when it is
            next called.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None or not dynamo.config.skip_nnmodule_hook_guards:
        return
    dynamo.config.skip_nnmodule_hook_guards = False
    if compiled_before and dynamo.convert_frame.input_codes.seen:
        dynamo.reset()
