"""Other people's networks for tests: their examples, and what importing them must not leave behind."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"

# equiformer-pytorch and se3-transformer-pytorch keep files in the home folder unless they are told not to.
os.environ.setdefault("CLEAR_CACHE", "1")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """NequIP sets torch's default dtype, options of its compiler, e3nn's and the seeds for the whole process."""
    e3nn = pytest.importorskip("e3nn")
    dynamo: Any = importlib.import_module("torch._dynamo.config")
    names = ("capture_dynamic_output_shape_ops", "capture_scalar_outputs")
    before = {name: getattr(dynamo, name) for name in names}
    dtype, sharing = torch.get_default_dtype(), torch.multiprocessing.get_sharing_strategy()
    options, random = e3nn.get_optimization_defaults(), torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.multiprocessing.set_sharing_strategy(sharing)
        e3nn.set_optimization_defaults(**options)
        torch.set_rng_state(random)
        for name, value in before.items():
            setattr(dynamo, name, value)


def example(name: str, needs: str) -> ModuleType:
    """The module `examples/<name>.py`; the test is skipped where the package `needs` is not installed."""
    pytest.importorskip(needs, reason=f"needs {needs}: pip install 'equirelax[examples]'")
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)
