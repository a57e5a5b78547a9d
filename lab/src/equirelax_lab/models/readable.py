"""Whether the values of tensors can be read."""

from __future__ import annotations

import torch
from torch._C._functorch import TransformType, get_interpreter_stack


def values_are_readable() -> bool:
    """Whether what a network does may depend on values: not under `torch.compile` and `torch.func.vmap`.

    Reading a value breaks a compiled graph, and mapped tensors have a value for every member.
    """
    if torch.compiler.is_compiling():
        return False
    return all(each.key() != TransformType.Vmap for each in get_interpreter_stack() or ())
