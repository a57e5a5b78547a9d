"""Detect what the current call runs under: a transform of `torch.func`, a trace, autograd's backward pass, `torch.compile`.

Torch has no public API for this. Only this file of the library uses private names for it.
"""

from __future__ import annotations

import sys

import torch
from torch import nn


def in_transform() -> bool:
    """Whether the call runs under `torch.func` (per-sample gradients), `torch.export` or `make_fx`.

    Their tensors are stand-ins that must not be kept after the call.
    """
    if torch.compiler.is_compiling():
        return not torch.compiler.is_dynamo_compiling()
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")  # if it is not loaded, it traces nothing
    return proxies is not None and proxies.get_proxy_mode() is not None


def in_backward() -> bool:
    """Whether autograd is running, so that a forward is a recomputation by gradient checkpointing."""
    # Under torch.compile checkpointed regions are recomputed inside the compiled
    # backward, where no Python runs.
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is the wrapper that `torch.compile` returns; it forwards attributes to the original, `_orig_mod`."""
    dynamo = sys.modules.get("torch._dynamo")  # without it nothing is compiled; importing it takes seconds
    return dynamo is not None and isinstance(module, dynamo.eval_frame.OptimizedModule)
