"""A model and PyTorch's global switches, put into a measuring state and given back exactly as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_REGISTRIES = frozenset(("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"))


@contextlib.contextmanager
def measuring(model: nn.Module, dtype: torch.dtype, seed: int = 0) -> Iterator[None]:
    """Inside: evaluation mode, parameters and buffers in ``dtype``, no autocast, no TF32, a private random
    state.

    The model is cast in place by handing each of its tensors a cast *copy* as data; on leaving, also through
    an error, each gets
    its own storage back, which nothing has written to: values and dtypes are those of before bit for bit, and
    ``Parameter`` objects, their version counters, gradients and every module's training flag are untouched.
    Floating tensors that a module keeps as plain attributes (or in a tuple, list or dict of its own) are cast
    too, as ``Module.to`` would not do, and attributes that a forward sets (caches) are set back. So are attributes
    that name the dtype of the model's own tensors (the dtype that a forward casts to): inside they name ``dtype``.
    """
    flags = [(module, module.training) for module in model.modules()]
    gradients = [(p, p.grad) for p in model.parameters()]
    registered = [(m, dict(m._buffers), set(m._non_persistent_buffers_set)) for m in _plain(model)]
    attributes = [(m, _attributes(m)) for m in _plain(model)]
    originals = [(tensor, tensor.data) for tensor in _tensors(model)]
    default = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        devices = sorted({t.device.index or 0 for t, _ in originals if t.device.type == "cuda"})
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(full_precision())
        stack.enter_context(torch.inference_mode(False))
        # Gradients stay on: a model that derives forces from an energy needs them in its own forward.
        stack.enter_context(torch.enable_grad())
        try:
            torch.manual_seed(seed)
            torch.set_default_dtype(dtype)
            for parameter, _ in gradients:
                parameter.grad = None
            own = {original.dtype for _, original in originals if original.is_floating_point()}
            for tensor, original in originals:
                tensor.data = original.to(_target(original, dtype), copy=True)
            for module, before in attributes:
                module.__dict__.update(
                    {
                        key: dtype
                        for key, value in before.items()
                        if isinstance(value, torch.dtype) and value in own
                    }
                )
            model.eval()  # after the casts: what eval() computes and keeps is then of the wanted dtype
            yield
        finally:
            torch.set_default_dtype(default)
            for tensor, original in originals:
                tensor.data = original
            for parameter, gradient in gradients:
                parameter.grad = gradient
            if flags and flags[0][1]:
                model.train()  # some layers rebuild or drop what eval() cached only when train() is called
            for module, training in flags:
                module.training = training
            for module, buffers, transient in registered:
                module._buffers.clear()
                module._buffers.update(buffers)
                module._non_persistent_buffers_set.clear()
                module._non_persistent_buffers_set.update(transient)
            for module, before in attributes:
                _restore(module, before)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Switch autocast, TF32 and bfloat16 products off, on every backend, and restore all of them."""
    backends: Any = torch.backends
    name: str
    off: Any
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        if hasattr(backends.cuda.matmul, "fp32_precision"):
            switches = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
            switches += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
            name, off = "fp32_precision", "ieee"
        else:
            switches, name, off = [backends.cuda.matmul, backends.cudnn], "allow_tf32", False
        saved = [getattr(switch, name) for switch in switches]
        try:
            for switch in switches:
                setattr(switch, name, off)
            yield
        finally:
            for switch, value in zip(switches, saved, strict=True):
                setattr(switch, name, value)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in module.__dict__.items() if key not in _REGISTRIES}


def _restore(module: nn.Module, before: dict[str, Any]) -> None:
    """Undo what a forward did to a module's plain attributes: rebound, added or deleted ones."""
    for key in [key for key in module.__dict__ if key not in before and key not in _REGISTRIES]:
        del module.__dict__[key]
    module.__dict__.update(before)


def _plain(model: nn.Module) -> Iterator[nn.Module]:
    """Modules whose buffers are a dict of their own (a scripted module keeps them elsewhere)."""
    return (module for module in model.modules() if isinstance(module.__dict__.get("_buffers"), dict))


def _target(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    if tensor.is_floating_point():
        return dtype
    if tensor.is_complex():
        return torch.complex128 if dtype == torch.float64 else torch.complex64
    return tensor.dtype


def _tensors(model: nn.Module) -> list[Tensor]:
    """Every tensor that the model holds, once: parameters, buffers, and tensors kept as plain attributes."""
    found: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        found.setdefault(id(tensor), tensor)
    for module in model.modules():
        for key, value in module.__dict__.items():
            if key in _REGISTRIES:
                continue
            for tensor in _attribute_tensors(value):
                found.setdefault(id(tensor), tensor)
    return list(found.values())


def _attribute_tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.layout == torch.strided and type(value) in (Tensor, nn.Parameter) else []
    if isinstance(value, (tuple, list)):
        return [t for item in value if isinstance(item, Tensor) for t in _attribute_tensors(item)]
    if isinstance(value, dict):
        return [t for item in value.values() if isinstance(item, Tensor) for t in _attribute_tensors(item)]
    return []
