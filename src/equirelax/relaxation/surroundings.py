"""What the current call runs under: a transform of `torch.func` or a trace, autograd's backward pass, a compiled module.

Torch has no public question for them; these are the only places of the library that ask in private names.
"""

from __future__ import annotations

import sys

import torch
from torch import nn


def in_transform() -> bool:
    """Whether the current call is one of `torch.func` (per-sample gradients), `torch.export` or `make_fx`, whose tensors are
    stand-ins that end with it.
    """
    if torch.compiler.is_compiling():
        return not torch.compiler.is_dynamo_compiling()
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    proxies = sys.modules.get(
        "torch.fx.experimental.proxy_tensor"
    )  # where it is not loaded nothing is traced by it
    return proxies is not None and proxies.get_proxy_mode() is not None


def in_backward() -> bool:
    """Whether autograd is running, so that a forward is the recomputation of gradient checkpointing."""
    # Under torch.compile checkpointed regions are recomputed inside the compiled
    # backward, where no Python runs.
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is what `torch.compile` gives for another one, `_orig_mod`, to whose attributes it forwards."""
    dynamo = sys.modules.get("torch._dynamo")  # without it nothing is compiled; importing it takes seconds
    return dynamo is not None and isinstance(module, dynamo.eval_frame.OptimizedModule)
