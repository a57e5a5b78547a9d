"""Inputs of training calls, kept for a penalty until after the backward pass.

A batch that comes from outside may lie in a buffer that the next micro-batch is read into; it is copied. What the network
computes is kept as it is (autograd needs it as well), with the count of writes to it, so that a later write is noticed.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equirelax.relaxation.columns import Columns, SharedColumns, identity
from equirelax.relaxation.surroundings import in_transform


@dataclass(frozen=True)
class _Part:
    """A tensor that is kept, and its source where others may ask for that too, so that its place in memory stays taken."""

    value: Tensor
    source: Tensor | None = None


@dataclass(frozen=True)
class Kept:
    """One input, detached.

    Args:
        value: The input as it was read.
        writes: `Tensor._version` of its parts when it was kept; None for what is traced or mapped, where nothing is counted.
        parts: The tensors that it consists of.
    """

    value: Columns
    writes: tuple[int, ...] | None
    parts: tuple[_Part, ...]

    @property
    def intact(self) -> bool:
        """Whether nothing was written into it since it was kept."""
        return self.writes is None or self.writes == counts(self.value)


_COPIES: weakref.WeakValueDictionary[tuple[Any, ...], _Part] = weakref.WeakValueDictionary()
"""What is still kept of sources that several residuals may read: these get the same one."""


def keep(x: Columns) -> Kept:
    """Keep an input."""
    if isinstance(x, SharedColumns):
        own, common = _part(x.own), _part(x.common)
        value: Columns = SharedColumns(own.value, common.value)
        parts: tuple[_Part, ...] = (own, common)
    else:
        parts = (_part(x),)
        value = parts[0].value
    return Kept(value, writes(value), parts)


def _part(x: Tensor) -> _Part:
    """Detached; a copy of what no operation that autograd records has made, for it may be anybody's."""
    if in_transform():  # kept for a penalty in the same call, before anybody writes into it
        return _COPIES.setdefault((id(x),), _Part(x.detach(), x))
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


def writes(x: Columns) -> tuple[int, ...] | None:
    """How often something was written into the memory of every part; None for what is traced, mapped or in inference mode,
    where nothing is counted.
    """
    if torch.compiler.is_compiling() or in_transform():
        return None
    first = x.own if isinstance(x, SharedColumns) else x  # both parts are of one forward
    return None if first.is_inference() else counts(x)


def counts(x: Columns) -> tuple[int, ...]:
    """The numbers of `writes` where there are any."""
    return (x.own._version, x.common._version) if isinstance(x, SharedColumns) else (x._version,)
