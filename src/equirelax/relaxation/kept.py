"""Inputs of training calls, kept for a penalty until after the backward pass.

A batch that comes from outside may lie in a buffer that the next micro-batch is read into; it is copied. What the network
computes is kept as it is (autograd needs it as well), with the count of writes to it, so that a later write is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equirelax.relaxation.columns import Columns, SharedColumns


@dataclass(frozen=True)
class Kept:
    """One input, detached.

    Args:
        value: as it was read.
        writes: `Tensor._version` of its parts when it was kept; None for what is traced, where nothing is counted.
    """

    value: Columns
    writes: tuple[int, ...] | None

    @property
    def intact(self) -> bool:
        """Whether nothing has been written into it since."""
        return self.writes is None or self.writes == _writes(self.value)


def keep(x: Columns) -> Kept:
    """Keep an input."""
    value = SharedColumns(_own(x.own), _own(x.common)) if isinstance(x, SharedColumns) else _own(x)
    return Kept(value, None if torch.compiler.is_compiling() else _writes(value))


def _own(x: Tensor) -> Tensor:
    """Detached; a copy of what no operation that autograd records has made, for it may be anybody's."""
    return x.detach().clone() if x.is_leaf else x.detach()


def _writes(x: Columns) -> tuple[int, ...]:
    return tuple(part._version for part in ((x.own, x.common) if isinstance(x, SharedColumns) else (x,)))


def in_transform() -> bool:
    """Whether the call under way is one of `torch.func` (per-sample gradients) or `torch.export`, whose tensors are
    stand-ins that end with it.
    """
    if torch.compiler.is_compiling():
        return not torch.compiler.is_dynamo_compiling()
    return torch._C._functorch.peek_interpreter_stack() is not None
