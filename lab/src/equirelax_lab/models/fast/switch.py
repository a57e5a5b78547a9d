"""When fast products may be used: the setting that turns them off, and the contexts that need ordinary operations."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from equirelax_lab.models.readable import only_mapped

_enabled = True


class set_enabled:
    """Turn fast products on or off in this process, as a call or for the duration of a `with` block.

    Results differ only by rounding. `with set_enabled(False):` is for comparisons, and for tools that must trace all operations.

    Args:
        enabled: Whether networks may use them.
    """

    def __init__(self, enabled: bool) -> None:
        global _enabled
        self._previous, _enabled = _enabled, enabled

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _enabled
        _enabled = self._previous


def is_enabled() -> bool:
    """Whether networks may use fast products; they may unless `set_enabled(False)` was called."""
    return _enabled


def transforms_active() -> bool:
    """Whether a transform of `torch.func` is active: vmap, grad, jvp, ..."""
    return bool(torch._C._are_functorch_transforms_active())


def needs_ordinary(*tensors: Tensor | None) -> bool:
    """Whether everything must be made of ordinary operations of torch.

    This is the case if fast products are turned off, and where torch traces through operations: compilation, tracing,
    `torch.func`, forward mode, and batches of gradients (`is_grads_batched`), which are visible only in the tensors.
    """
    if not _enabled or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if transforms_active() or forward_ad._current_level >= 0:
        return True
    return any(t is not None and torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors)


def may_use_hand_written(module: nn.Module, x: Tensor) -> bool:
    """Whether to use hand-written derivatives: in training, and wherever no gradients are recorded.

    Evaluation with gradients uses ordinary operations, and so does autocast, which chooses a precision for each of them.
    """
    if needs_ordinary() or torch.is_autocast_enabled(x.device.type):
        return False
    return module.training or not torch.is_grad_enabled()


def may_map_hand_written(module: nn.Module, x: Tensor) -> bool:
    """Whether to use hand-written derivatives for every member separately: on the CPU, if one `torch.func.vmap` is active and
    nothing else forbids them.

    Ordinary operations on all members take few launches, which limit a GPU, and twice the memory traffic, which limits a CPU.
    """
    if not _enabled or not only_mapped() or forward_ad._current_level >= 0 or x.device.type != "cpu":
        return False
    if torch.is_autocast_enabled(x.device.type):
        return False
    return module.training or not torch.is_grad_enabled()


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward: then the module itself must be called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
