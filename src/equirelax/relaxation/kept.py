"""Inputs of training calls, kept for a penalty until after the backward pass.

A batch that comes from outside may lie in a buffer that the next micro-batch is read into; it is copied. What the network
computes is kept as it is (autograd needs it as well), with the count of writes to it, so that a later write is noticed.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equirelax.relaxation.columns import Columns, SharedColumns, identity


@dataclass(frozen=True)
class _Part:
    """A tensor that is kept, and where it was copied from (None: it is no copy), so that its place in memory stays taken."""

    value: Tensor
    source: Tensor | None = None


@dataclass(frozen=True)
class Kept:
    """One input, detached.

    Args:
        value: The input as it was read.
        writes: `Tensor._version` of its parts when it was kept; None for what is traced, where nothing is counted.
        parts: The tensors that it consists of.
    """

    value: Columns
    writes: tuple[int, ...] | None
    parts: tuple[_Part, ...]

    @property
    def intact(self) -> bool:
        """Whether nothing was written into it since it was kept."""
        return self.writes is None or self.writes == _writes(self.value)


_COPIES: weakref.WeakValueDictionary[tuple[Any, ...], _Part] = weakref.WeakValueDictionary()
"""Copies that are still kept, by their source: residuals that read the same get the same one."""


def keep(x: Columns) -> Kept:
    """Keep an input."""
    if isinstance(x, SharedColumns):
        own, common = _part(x.own), _part(x.common)
        value: Columns = SharedColumns(own.value, common.value)
        parts: tuple[_Part, ...] = (own, common)
    else:
        parts = (_part(x),)
        value = parts[0].value
    return Kept(value, None if torch.compiler.is_compiling() else _writes(value), parts)


def _part(x: Tensor) -> _Part:
    """Detached; a copy of what no operation that autograd records has made, for it may be anybody's."""
    if not x.is_leaf:
        return _Part(x.detach())
    if torch.compiler.is_compiling() or x.is_inference():
        return _Part(x.detach().clone())
    source = x.detach()
    key = (*identity(source), source._version)
    found = _COPIES.get(key)
    # memory that NumPy shares is written to without being counted
    if found is None or (x.device.type == "cpu" and not torch.equal(found.value, source)):
        found = _COPIES[key] = _Part(source.clone(), source)
    return found


def _writes(x: Columns) -> tuple[int, ...]:
    return tuple(part._version for part in ((x.own, x.common) if isinstance(x, SharedColumns) else (x,)))


def in_transform() -> bool:
    """Whether the current call is one of `torch.func` (per-sample gradients), `torch.export` or `make_fx`, whose tensors are
    stand-ins that end with it.
    """
    if torch.compiler.is_compiling():
        return not torch.compiler.is_dynamo_compiling()
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    proxies = sys.modules.get(
        "torch.fx.experimental.proxy_tensor"
    )  # where it is not loaded nothing is traced by it
    return proxies is not None and proxies.get_proxy_mode() is not None


def in_backward() -> bool:
    """Whether autograd is running, so that a forward is the recomputation of gradient checkpointing."""
    # Under torch.compile checkpointed regions are recomputed inside the compiled
    # backward, where no Python runs.
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1
