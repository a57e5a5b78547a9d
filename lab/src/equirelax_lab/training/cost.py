"""The cost of a prediction: exact multiply-adds of matrix products and convolutions, and time on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
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


class _MultiplyAdds(TorchDispatchMode):
    """Counts like torch's `FlopCounterMode`, by the same formulas.

    `FlopCounterMode` also attributes the counts to modules, by hooks that fail if a prediction differentiates with respect to
    its input, as networks that predict forces do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out) / 2
        return out


def multiply_adds(call: Callable[[], Any]) -> float:
    """Multiply-adds of every matrix product and convolution in a call, by torch's formulas: half of its FLOPs."""
    with _MultiplyAdds() as counted:
        call()
    return counted.total


def inference_cost(assembly: Assembly, data: Samples) -> dict[str, dict[str, float]]:
    """The cost of one sample in a batch of up to 16: {relaxed, projected} -> {multiply_adds, milliseconds}.

    Milliseconds are the minimum of five repetitions, after two for warm-up.
    """
    count = min(SAMPLES, len(data))
    batch = assembly.task.eval_batch(data, range(count))
    cost = {"relaxed": _cost(assembly.task, assembly.model, batch, count)}
    cost["projected"] = cost["relaxed"]
    if assembly.relaxation is not None:
        with assembly.relaxation.strict():
            cost["projected"] = _cost(assembly.task, assembly.model, batch, count)
    return cost


def _cost(task: Task, model: nn.Module, batch: Batch, count: int) -> dict[str, float]:
    on_gpu = next(iter(batch.values())).is_cuda
    seconds = []
    with evaluating(model):
        products = multiply_adds(lambda: task.predict(model, batch))
        for _ in range(WARM_UP + REPETITIONS):
            start = time.perf_counter()
            task.predict(model, batch)
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return {"multiply_adds": products / count, "milliseconds": 1e3 * min(seconds[WARM_UP:]) / count}
