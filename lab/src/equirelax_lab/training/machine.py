"""Where and how a run executes."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

from equirelax.settings import JOBS, Settings, within


@dataclass(frozen=True, kw_only=True)
class Machine(Settings):
    """Where and how a run executes; results differ only by rounding.

    Attributes:
        accelerator: cpu, gpu, or auto: GPUs (CUDA) if there is one for every device, else the CPU.
        devices: Number of devices (processes).
        accumulate: Parts in which every batch is computed, one after the other, to save memory. A last batch with
            fewer samples than parts is left out. Batch norm sees one part at a time.
        precision: 32-true, or bf16-mixed: products of a training step in bfloat16. Weights, penalties, strengths,
            validation and test stay in full precision.
        strategy: Lightning Fabric's strategy: auto, ddp, ...
        graph: Capture the training step as a CUDA graph and replay it, which launches its many small kernels at once. It
            needs one GPU and batches of one shape. Without a GPU the same step runs uncaptured.
        threads: Threads of torch in every process; small models are fastest with one.
        progress: Show a bar or lines.
        tensorboard: Write TensorBoard events beside metrics.csv, if the package tensorboard is installed.
        wandb: Also log to Weights & Biases, according to its own variables (WANDB_MODE=offline: into the run's folder).
        mlflow: Also log to MLflow, at the address in its own variable MLFLOW_TRACKING_URI.
    """

    accelerator: Literal["cpu", "gpu", "auto"] = "cpu"
    devices: int = within(JOBS, 1)
    accumulate: int = within(JOBS, 1)
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    strategy: str = "auto"
    graph: bool = False
    threads: int = within(JOBS, 1)
    progress: bool = True
    tensorboard: bool = True
    wandb: bool = False
    mlflow: bool = False

    def resolved(self, gpus: int) -> Machine:
        """The machine with the accelerator `auto` resolved, given `gpus` GPUs."""
        if self.accelerator != "auto":
            return self
        return replace(self, accelerator="gpu" if gpus >= self.devices else "cpu")


def cores() -> int:
    """Processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
