"""Start the processes of a run on its devices."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from equirelax.errors import ConfigError
from equirelax_lab.training.machine import Machine

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@contextlib.contextmanager
def launched(machine: Machine) -> Iterator[Fabric]:
    """Lightning Fabric with every process started; the other processes end if this one raises an error.

    Raises:
        ConfigError: The accelerator, number of devices or strategy is not available here.
    """
    from lightning.fabric import Fabric  # takes seconds to import

    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")  # about data loaders, which we do not use
        try:
            fabric = Fabric(
                accelerator=machine.accelerator,
                devices=machine.devices,
                strategy=machine.strategy,
            )
        except (ValueError, RuntimeError, TypeError) as error:
            raise ConfigError(
                f"--accelerator {machine.accelerator} --devices {machine.devices} --strategy {machine.strategy} does not "
                f"work here: {' '.join(str(error).split())}"
            ) from error
        fabric.launch()
        try:
            yield fabric
        except BaseException:
            for process in getattr(fabric.strategy.launcher, "procs", ()):
                process.kill()  # it might wait for this one for ever
            raise


def global_rank() -> int:
    """The number of this process in a distributed run; 0 in any other run."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
