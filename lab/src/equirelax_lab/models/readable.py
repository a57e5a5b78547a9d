"""Whether the values of tensors can be read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
)


def values_are_readable(*tensors: Tensor) -> bool:
    """Whether a computation may depend on values: not under `torch.compile`, nor on tensors that `torch.func.vmap` maps.

    Reading a value breaks a compiled graph, and mapped tensors have a value for every member.

    Args:
        tensors: The tensors whose values would be read, some of which may be the same for all members; if empty, any tensor.
    """
    if torch.compiler.is_compiling():
        return False
    if tensors:
        return not any(is_mapped(tensor) for tensor in tensors)
    return all(each.key() != TransformType.Vmap for each in get_interpreter_stack() or ())


def is_mapped(tensor: Tensor) -> bool:
    """Whether `torch.func.vmap` maps over a tensor, so that it has a value for every member."""
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            return True
        tensor = get_unwrapped(tensor)
    return False


def only_mapped() -> bool:
    """Whether a single `torch.func.vmap`, and no other transform, is active."""
    if torch.compiler.is_compiling():
        return False
    return [each.key() for each in get_interpreter_stack() or ()] == [TransformType.Vmap]
