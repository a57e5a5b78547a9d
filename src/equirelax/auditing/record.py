"""Record the inputs and outputs of every module during one call of a model, in order."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.auditing.samples import leaves, map_tree


@dataclasses.dataclass
class Call:
    """One call of one module.

    Attributes:
        module, path, type: The module, its path and the name of its class.
        index: Number of the module's call, 0 for the first.
        parent: Number of the call from which it was made, -1 for the model.
        arguments: Detached copies of (args, kwargs).
        inputs, outputs: Their floating tensors by path, as detached copies in float64. Paths of inputs begin with ``[0]`` for
            positional and ``[1]`` for keyword arguments.
        order: When the call began and ended, counted over all calls.
    """

    module: nn.Module
    path: str
    type: str
    index: int
    parent: int
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    order: tuple[int, int]


def tensors_of(tree: Any, copy: bool = True) -> dict[str, Tensor]:
    """The measurable tensors of a tree by path, dense and in float64. Without ``copy``, float64 tensors are not copied."""
    found = {leaf.path: leaf.value.detach() for leaf in leaves(tree, None) if leaf.measurable}
    dense = {
        path: value if value.layout == torch.strided or value.is_nested else value.to_dense()
        for path, value in found.items()
    }
    return {path: value.to(torch.float64, copy=copy) for path, value in dense.items()}


class Recorder:
    """Hooks for every module of a model. :meth:`recording` collects the calls made inside it."""

    def __init__(self, model: nn.Module, skip: frozenset[nn.Module] = frozenset()) -> None:
        # Generated code (e3nn's kernels) is part of the module that owns it.
        generated = {
            m for g in model.modules() if isinstance(g, _GENERATED) and g is not model for m in g.modules()
        }
        self.names = {
            module: path
            for path, module in model.named_modules()
            if not isinstance(module, _PLAIN) and module not in skip and module not in generated
        }
        self.calls: list[Call] = []
        self.open: list[int] = []
        self.counts: dict[nn.Module, int] = {}
        self.clock = 0

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[Call]]:
        """Yield the list of calls, which is filled as they are made."""
        self.calls, self.open, self.counts, self.clock = [], [], {}, 0
        handles = []
        try:
            for module in self.names:
                handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
            yield self.calls
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = self.names[module]
        index = self.counts.get(module, 0)
        self.counts[module] = index + 1
        copied = map_tree((args, dict(kwargs)), None, lambda leaf: leaf.value.detach().clone())
        inputs = tensors_of(copied, copy=False)  # fields are large, and the copy is never written to
        parent = self.open[-1] if self.open else -1
        self.open.append(len(self.calls))
        self.calls.append(
            Call(module, path, type(module).__name__, index, parent, copied, inputs, {}, (self.clock, -1))
        )
        self.clock += 1

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = self.calls[self.open.pop()]
        call.outputs = tensors_of(output)
        call.order = (call.order[0], self.clock)
        self.clock += 1


_GENERATED = (torch.fx.GraphModule, torch.jit.ScriptModule)
_PLAIN = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
