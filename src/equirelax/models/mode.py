"""When derivatives that are written out by hand may be used."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def by_hand(module: nn.Module, x: Tensor) -> bool:
    """Whether to take the hand-written derivatives: in training, and in inference mode where none is asked for.

    Evaluation, autocast and compilation use ordinary operations, which `torch.func`, forward mode and the compiler
    see through.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False
    return torch.is_inference_mode_enabled() or (module.training and torch.is_grad_enabled())
