"""Refuse networks that are too large to train on this machine, while they are built and before its memory is full."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from equirelax.errors import ConfigError
from equirelax_lab.tasks.registry import base_of
from equirelax_lab.tasks.settings import RunConfig

COPIES = 4
"""Copies of every weight in training: the weight itself, its gradient and Adam's two moments."""


def machine_bytes() -> float:
    """Physical memory of this machine in bytes; infinity if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows has no sysconf
        return math.inf


@contextmanager
def fitting(config: RunConfig) -> Iterator[None]:
    """Limit the parameters that are registered within the context to those that this machine's memory can train.

    Every parameter counts when a module registers it, so that building stops with at most a quarter of the memory in use.

    Raises:
        ConfigError: There are more parameters, or the system refuses memory. The message names the settings that are larger
            than the benchmark's.
    """
    most, total = machine_bytes(), 0

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter) -> None:
        nonlocal total
        total += COPIES * parameter.numel() * parameter.element_size()
        if total > most:
            raise _too_large(config, most)

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        raise _too_large(config, most) from error
    finally:
        handle.remove()


def _too_large(config: RunConfig, most: float) -> ConfigError:
    ours = config.to_dict()
    theirs = base_of(config).to_dict()
    larger = [
        f"'{section}.{key}' ({value})"
        for section in ("network", "residual")
        for key, value in ours[section].items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and isinstance(before := theirs[section].get(key) or 0, int | float)
        and value > before
    ]
    size = f"{most / 2**30:.0f} GiB of " if math.isfinite(most) else ""
    return ConfigError(
        f"Training this network needs more than the {size}memory that this machine has: make "
        f"{' or '.join(larger) or 'the network'} smaller."
    )
