"""Inputs of training calls, kept for a penalty until after the backward pass.

A batch that comes from outside may be in a buffer into which the next micro-batch is read, so it is copied. A tensor that the
network computes is kept without a copy (autograd needs it as well), with its write counter, so that a later write is detected.
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
    """A kept tensor. It also holds the source if other residuals may keep it, so that its memory is not reused."""

    value: Tensor
    source: Tensor | None = None


@dataclass(frozen=True)
class Kept:
    """One input, detached.

    Args:
        value: The input as it was read.
        writes: `Tensor._version` of its parts when it was kept; None for traced or mapped tensors, which have no counters.
        parts: The tensors of which it consists.
    """

    value: Columns
    writes: tuple[int, ...] | None
    parts: tuple[_Part, ...]

    @property
    def intact(self) -> bool:
        """Whether it has not been written to since it was kept."""
        return self.writes is None or self.writes == counts(self.value)


_COPIES: weakref.WeakValueDictionary[tuple[Any, ...], _Part] = weakref.WeakValueDictionary()
"""The parts still kept of sources that several residuals may read, so that they share one copy."""


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
    """Detach a tensor, and copy it if it is not the result of a recorded operation, since its owner may overwrite it."""
    if in_transform():  # kept for a penalty in the same call, before anything can write to it
        return _COPIES.setdefault((id(x),), _Part(x.detach(), x))
    if not x.is_leaf:
        return _Part(x.detach())
    if torch.compiler.is_compiling() or x.is_inference():
        return _Part(x.detach().clone())
    source = x.detach()
    key = (*identity(source), source._version)
    found = _COPIES.get(key)
    # writes to memory shared with NumPy are not counted
    if found is None or (x.device.type == "cpu" and not torch.equal(found.value, source)):
        found = _COPIES[key] = _Part(source.clone(), source)
    return found


def writes(x: Columns) -> tuple[int, ...] | None:
    """The write counters of every part; None for traced or mapped tensors and in inference mode, which have none."""
    if torch.compiler.is_compiling() or in_transform():
        return None
    first = x.own if isinstance(x, SharedColumns) else x  # both parts come from one forward
    return None if first.is_inference() else counts(x)


def counts(x: Columns) -> tuple[int, ...]:
    """The write counters of every part, which must exist."""
    return (x.own._version, x.common._version) if isinstance(x, SharedColumns) else (x._version,)
