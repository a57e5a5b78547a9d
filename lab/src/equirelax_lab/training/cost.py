"""What a prediction costs: multiply-adds of matrix products and convolutions, which are exact, and time, which is this
machine's.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from equirelax_lab.data import Samples
from equirelax_lab.tasks.task import Batch, Task
from equirelax_lab.training.assembly import Assembly
from equirelax_lab.training.evaluation import evaluating

SAMPLES = 16
WARM_UP, REPETITIONS = 2, 5


class MultiplyAdds(TorchDispatchMode):
    """Counts those of every matrix product and convolution that runs within it, by torch's own formulas.

    Attributes:
        total: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what was asked, and add its cost."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out) / 2
        return out


def inference_cost(assembly: Assembly, data: Samples) -> dict[str, dict[str, float]]:
    """Cost of one sample in a batch of up to 16: {relaxed, projected} -> {multiply_adds, milliseconds}.

    Milliseconds are the least of five repetitions after two that warm up.
    """
    count = min(SAMPLES, len(data))
    batch = assembly.task.eval_batch(data, range(count))
    found = {"relaxed": _cost(assembly.task, assembly.model, batch, count)}
    found["projected"] = found["relaxed"]
    if assembly.relaxation is not None:
        with assembly.relaxation.strict():
            found["projected"] = _cost(assembly.task, assembly.model, batch, count)
    return found


def _cost(task: Task, model: nn.Module, batch: Batch, count: int) -> dict[str, float]:
    seconds = []
    with evaluating(model):
        with MultiplyAdds() as counted:
            task.predict(model, batch)
        for _ in range(WARM_UP + REPETITIONS):
            start = time.perf_counter()
            task.predict(model, batch)
            if batch_device(batch).type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return {"multiply_adds": counted.total / count, "milliseconds": 1e3 * min(seconds[WARM_UP:]) / count}


def batch_device(batch: Batch) -> torch.device:
    """Where a batch is."""
    return next(iter(batch.values())).device
