"""What importing and building other people's networks must not leave behind in the process of the tests."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

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
