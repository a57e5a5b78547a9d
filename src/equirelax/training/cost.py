"""What a prediction costs: multiply-adds, which are exact, and time, which is this machine's."""

from __future__ import annotations

import time

import torch
from torch import nn

from equirelax.benchmarks.task import Batch, Task
from equirelax.data import Samples
from equirelax.training.assembly import Assembly
from equirelax.training.evaluation import evaluating
from equirelax.training.perf import products

SAMPLES = 16
WARM_UP, REPETITIONS = 2, 5


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
        adds = sum(product.multiply_adds for product in products(lambda: task.predict(model, batch)))
        for _ in range(WARM_UP + REPETITIONS):
            start = time.perf_counter()
            task.predict(model, batch)
            if batch_device(batch).type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return {"multiply_adds": adds / count, "milliseconds": 1e3 * min(seconds[WARM_UP:]) / count}


def batch_device(batch: Batch) -> torch.device:
    """Where a batch is."""
    return next(iter(batch.values())).device
