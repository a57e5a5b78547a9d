"""Convert maps of residuals to the precision of their penalties, float32 or better, and gather them if they are sharded.

Sums of squares over thousands of rows overflow in float16 and lose all small terms in bfloat16.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

_M = TypeVar("_M", bound=nn.Module)


def penalty_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of penalties for parameters of this dtype: float32 or better."""
    return torch.promote_types(dtype, torch.float32)


def promoted(module: _M) -> _M:
    """A module that computes in float32 or better from the same parameters, which get its gradients.

    It is the module itself if nothing is below float32 or sharded, else a view of it that must be used at once.
    """
    tensors = (*module.parameters(), *module.buffers())
    if all(_promoted(tensor) is tensor for tensor in tensors):
        return module
    return _view(module)


def _promoted(tensor: Tensor) -> Tensor:
    tensor = whole(tensor)
    return tensor.to(penalty_dtype(tensor.dtype)) if tensor.is_floating_point() else tensor


def _view(module: _M) -> _M:
    view = copy.copy(module)
    for own in ("_parameters", "_buffers"):
        cast = {
            name: None if tensor is None else _promoted(tensor)
            for name, tensor in getattr(module, own).items()
        }
        view.__dict__[own] = cast
    view.__dict__["_modules"] = {
        name: None if child is None else _view(child) for name, child in module._modules.items()
    }
    return view


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of a tensor that `torch.distributed.fsdp.fully_shard` has split over processes.

    Gradients are averaged over the processes, as FSDP does.
    """
    if not hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import Partial

    full: Tensor = tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)  # type: ignore[attr-defined]
    return full
