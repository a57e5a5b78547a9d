"""Where and how a run executes."""

from __future__ import annotations

import os
from dataclasses import dataclass

from equirelax.ranges import JOBS, within


@dataclass(frozen=True)
class Machine:
    """Where and how a run executes; it does not change what is computed, beyond rounding.

    Attributes:
        accelerator: cpu, gpu, or auto.
        devices: Number of devices (processes).
        strategy: Lightning's strategy: auto, ddp, ...
        threads: Threads of torch in every process; small models are fastest with one.
        progress: Show a bar or lines.
        tensorboard: Write TensorBoard events beside metrics.csv.
    """

    accelerator: str = "cpu"
    devices: int = within(JOBS, 1)
    strategy: str = "auto"
    threads: int = within(JOBS, 1)
    progress: bool = True
    tensorboard: bool = True


def cores() -> int:
    """Processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
