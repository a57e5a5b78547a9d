"""How a model is called with a sample: one argument, several, or keywords."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from equirelax.auditing.tree import is_graph


class Function(nn.Module):
    """A plain function as a module without state of its own (a bound method's module is cast with it)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        owner = getattr(function, "__self__", None)
        if isinstance(owner, nn.Module):
            self.owner = owner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def call(model: nn.Module | Callable[..., Any], sample: Any) -> Any:
    """``model(*sample)`` for a tuple or list, ``model(**sample)`` for a mapping of keywords, else ``model(sample)``."""
    if takes_keywords(model, sample):
        return model(**sample)
    if isinstance(sample, (tuple, list)):
        return model(*sample)
    return model(sample)


def takes_keywords(model: nn.Module | Callable[..., Any], sample: Any) -> bool:
    """Whether a sample is a mapping whose keys are parameters of the model's forward.

    Any other mapping, and PyG ``Data``, is one argument. Keys that the forward does not name are taken for keywords only
    where it has ``**kwargs``.
    """
    if not isinstance(sample, Mapping) or is_graph(sample) or not all(isinstance(key, str) for key in sample):
        return False
    try:
        parameters = inspect.signature(_forward(model)).parameters.values()
    except (TypeError, ValueError):  # functions written in C, none of which takes a mapping
        return True
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    needed = {p.name for p in parameters if p.name in named and p.default is p.empty}
    rest = any(p.kind == p.VAR_KEYWORD for p in parameters)
    return needed <= set(sample) and (rest or set(sample) <= named)


def as_arguments(model: nn.Module | Callable[..., Any], sample: Any, tree: Any) -> tuple[Any, Any]:
    """(args, kwargs) of a tree that is shaped like the sample: the sample itself, or its representations."""
    if takes_keywords(model, sample):
        return ((), tree or {})
    if isinstance(sample, (tuple, list)):
        return (tuple(tree) if tree is not None else (None,) * len(sample), {})
    return ((tree,), {})


def _forward(model: Any) -> Callable[..., Any]:
    """What the arguments reach: of wrappers that pass everything on, the forward of the model inside."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        elif isinstance(model, nn.Sequential) and len(model):
            model = model[0]
        elif isinstance(model, Function):
            model = model.function
        else:
            return model.forward if isinstance(model, nn.Module) else model
