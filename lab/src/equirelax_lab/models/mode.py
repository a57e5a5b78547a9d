"""Modules that are not called as they stand: derivatives that are written out by hand, when they may be used and what
stands in where they may not; and modules that are watched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def by_hand(module: nn.Module, x: Tensor) -> bool:
    """Whether to take hand-written derivatives: in training, and wherever no gradients are recorded.

    Evaluation with gradients, autocast, compilation, tracing, `torch.func` and forward mode use ordinary operations,
    which they see through.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type) or torch.jit.is_tracing():
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    return module.training or not torch.is_grad_enabled()


def is_hooked(module: nn.Module) -> bool:
    """Whether a module's call does more than its forward: then it must be called, and not gone around."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def gradients(
    formula: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Vector-Jacobian product of a formula by autograd, itself differentiable where gradients are recorded.

    The formula is evaluated at fresh aliases of the inputs. Where one input was computed from another (features from the
    attributes or the weight that the next product shares), autograd would otherwise walk from the one through its history
    to the other and count that contribution, which the caller adds itself, a second time.

    ``needed`` says for each input whether its gradient is wanted; the others get None.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [x.view_as(x) if create_graph else x.detach().requires_grad_() for x in inputs]
        wanted = [x for x, need in zip(aliases, needed, strict=False) if need]
        found = iter(
            torch.autograd.grad(formula(*aliases), wanted, grad, create_graph=create_graph, allow_unused=True)
        )
    return tuple(next(found) if need else None for _, need in zip(aliases, needed, strict=False))
