"""Put a model and PyTorch's global switches into a measuring state, and restore both exactly."""

from __future__ import annotations

import collections
import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from equirelax.auditing.samples import complex_of
from equirelax.errors import AuditError

_REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
# Attributes that torch sets in every module. They stay in place, since hook handles refer to their dictionaries.
_TORCH_OWN = frozenset(nn.Module().__dict__) | {"training"}


@contextlib.contextmanager
def measuring(model: nn.Module, dtype: torch.dtype | None, seed: int = 0) -> Iterator[None]:
    """Run the body with the model in evaluation mode and in ``dtype``, without autocast, TF32 and compiled code.

    If ``dtype`` is None, every tensor keeps its dtype. Random states are private to the body. Parameters get a cast *copy* as
    data. Every other tensor that a module holds as a buffer or a plain attribute, and every list, dict, tuple, set or deque
    among its attributes, is replaced by a copy, which is cast if it holds floating tensors. On exit, even after an error,
    parameters get their own storage back, and modules the same objects that they had before: everything that a forward wrote,
    cached, added, replaced or recorded a gradient for is gone. ``Parameter`` objects, their version counters, gradients and
    every module's training flag stay untouched. Attributes that hold the dtype of the model's own tensors (the dtype to which
    a forward casts) hold ``dtype`` in the body. The contents of other objects (a cache that is not a built-in container, a
    closure, a global) are neither cast nor restored.

    Raises:
        AuditError: A lazy module has not been called yet.
    """
    modules = list(model.modules())
    flags = [(module, module.training) for module in modules]
    held = [_Held(module) for module in modules if isinstance(module.__dict__.get("_buffers"), dict)]
    placed = (*model.parameters(), *model.buffers())
    devices = sorted({t.device.index or 0 for t in placed if t.device.type == "cuda"})
    default = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(_other_generators(seed))
        stack.enter_context(full_precision())
        if (
            "torch._dynamo" in sys.modules
        ):  # if it is not loaded nothing is compiled, and its import takes seconds
            # Compiled code would be recompiled for the dtype and for every hook.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.inference_mode(False))
        # Gradients stay on: a model that derives forces from an energy needs them in its forward.
        stack.enter_context(torch.enable_grad())
        copies = _Copies(dtype)
        for tensor in (*model.parameters(), *_outside_python(modules)):
            copies.keep(tensor)
        insides = [one.inside(copies) for one in held]
        gradients = [(tensor, tensor.grad, tensor.requires_grad) for tensor, _ in copies.kept]
        try:
            # torch.manual_seed() would also seed accelerators whose state is not kept.
            torch.default_generator.manual_seed(seed)
            for index in devices:
                torch.cuda.default_generators[index].manual_seed(seed)
            if dtype is not None:
                torch.set_default_dtype(dtype)
            for tensor, _, _ in gradients:
                tensor.grad = None
            for tensor, original in copies.kept:
                tensor.data = original.to(copies.target(original), copy=True)
            for one, inside in zip(held, insides, strict=True):
                one.put(inside, copies)
            model.eval()  # after the casts, so that tensors that eval() computes and keeps have the right dtype
            yield
        finally:
            torch.set_default_dtype(default)
            with contextlib.suppress(Exception):  # train() may fail after a forward that failed
                if flags[0][1]:
                    # Here some layers undo the effects of eval(), such as a merge into weights. The copies are still in place.
                    model.train()
            for tensor, original in copies.kept:
                tensor.data = original
            for tensor, gradient, needed in gradients:
                if tensor.requires_grad != needed:
                    tensor.detach_().requires_grad_(needed)
                tensor.grad = gradient
            for one in held:
                one.give_back()
            for module, training in flags:
                module.training = training


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Switch autocast, TF32 and bfloat16 products off on every backend, and restore them afterwards."""
    backends: Any = torch.backends
    name: str
    off: Any
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        if hasattr(backends.cuda.matmul, "fp32_precision"):
            of_cuda = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
            switches = [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
            name, off = "fp32_precision", ("ieee", "none")
        else:
            of_cuda, switches = [backends.cuda.matmul, backends.cudnn], []
            name, off = "allow_tf32", (False,)
        if torch.cuda.is_available():
            switches += of_cuda
        # Do not write to a switch that is off: written values no longer follow `torch.backends.fp32_precision`.
        saved = [(switch, getattr(switch, name)) for switch in switches if getattr(switch, name) not in off]
        try:
            for switch, _ in saved:
                setattr(switch, name, off[0])
            yield
        finally:
            for switch, value in saved:
                setattr(switch, name, value)


@contextlib.contextmanager
def _other_generators(seed: int) -> Iterator[None]:
    """Seed Python's and NumPy's global random generators, and restore them afterwards."""
    own, of_numpy = random.getstate(), np.random.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        random.setstate(own)
        np.random.set_state(of_numpy)


class _Copies:
    """Copies of a model's tensors and containers for the measurement, one per object."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self.kept: list[tuple[Tensor, Tensor]] = []  # objects that stay in place, with their original data
        self.own_dtypes: set[torch.dtype] = set()
        self._known: dict[int, Any] = {}
        self._alive: list[Any] = []  # keeps the objects alive, so that their ids stay unique

    def keep(self, tensor: Tensor) -> Tensor:
        """Keep a tensor in place. Its data will be cast."""
        if is_lazy(tensor):
            raise AuditError(
                "the model has lazy modules whose parameters do not exist yet: call it once on the sample before the audit"
            )
        if id(tensor) not in self._known:
            self._known[id(tensor)] = tensor
            self.kept.append((tensor, tensor.data))
            self._note(tensor)
        return tensor

    def of(self, value: Any) -> Any:
        """Copy a tensor or container, and return anything else itself."""
        if id(value) in self._known:
            return self._known[id(value)]
        if isinstance(value, nn.Parameter):
            return self.keep(value)
        kind = type(value)
        if kind is Tensor and value.layout == torch.strided and not is_lazy(value):
            self._note(value)
            made: Any = value.detach().to(self.target(value), copy=True)
            return self._remember(value, made.requires_grad_(value.requires_grad))
        if isinstance(value, tuple):
            items = [self.of(item) for item in value]
            if all(a is b for a, b in zip(items, value, strict=True)) or not (
                kind is tuple or hasattr(kind, "_fields")
            ):
                return value
            return self._remember(value, kind(*items) if hasattr(kind, "_fields") else tuple(items))
        if kind in (dict, collections.OrderedDict, collections.defaultdict):
            made = (
                collections.defaultdict(value.default_factory) if kind is collections.defaultdict else kind()
            )
            self._remember(value, made)  # before its items, since it may contain itself
            made.update({key: self.of(item) for key, item in value.items()})
            return made
        if kind in (list, collections.deque):
            made = [] if kind is list else collections.deque(maxlen=value.maxlen)
            self._remember(value, made)
            made.extend(self.of(item) for item in value)
            return made
        if kind is set:
            return self._remember(value, set(value))
        return value

    def buffer(self, value: Tensor | None) -> Tensor | None:
        """Copy a buffer. One that cannot simply be copied (sparse, distributed) stays in place with cast data."""
        plain = value is None or (type(value) is Tensor and value.layout == torch.strided)
        return self.of(value) if plain or value is None else self.keep(value)

    def target(self, tensor: Tensor) -> torch.dtype:
        """The dtype in which a tensor is measured."""
        if self.dtype is None:
            return tensor.dtype
        if tensor.is_floating_point():
            return self.dtype
        return complex_of(self.dtype) if tensor.is_complex() else tensor.dtype

    def _note(self, tensor: Tensor) -> None:
        if tensor.is_floating_point():
            self.own_dtypes.add(tensor.dtype)

    def _remember(self, value: Any, made: Any) -> Any:
        self._alive.append(value)
        self._known[id(value)] = made
        return made


class _Held:
    """The contents of one module: its registries and its plain attributes."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.registries = {name: module.__dict__[name].copy() for name in _REGISTRIES}
        self.attributes = {key: value for key, value in module.__dict__.items() if key not in _REGISTRIES}

    def inside(self, copies: _Copies) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the buffers and attributes for the measurement, without attributes that stay the same."""
        buffers = {key: copies.buffer(value) for key, value in self.registries["_buffers"].items()}
        own = {key: value for key, value in self.attributes.items() if key not in _TORCH_OWN}
        return buffers, {key: copies.of(value) for key, value in own.items()}

    def put(self, inside: tuple[dict[str, Any], dict[str, Any]], copies: _Copies) -> None:
        """Put the result of `inside` in place. Attributes that hold a dtype of the model's own tensors get the new dtype."""
        self.module._buffers.update(inside[0])
        self.module.__dict__.update(
            {
                key: copies.dtype
                if copies.dtype and isinstance(value, torch.dtype) and value in copies.own_dtypes
                else value
                for key, value in inside[1].items()
            }
        )

    def give_back(self) -> None:
        """Undo all changes to the module since."""
        for name, saved in self.registries.items():
            registry = self.module.__dict__[name]
            registry.clear()
            registry.update(saved)
        for key in [
            key for key in self.module.__dict__ if key not in self.attributes and key not in _REGISTRIES
        ]:
            del self.module.__dict__[key]
        self.module.__dict__.update(self.attributes)


def _outside_python(modules: list[nn.Module]) -> Iterator[Tensor]:
    """Yield the buffers of scripted modules, which are not Python attributes."""
    for module in modules:
        if not isinstance(module.__dict__.get("_buffers"), dict):
            yield from module.buffers(recurse=False)
