"""What training does to the network that is deployed: its loss on training data, and how far its weights move.

The loss that is minimised is the relaxed network's. Where the projected network's loss on the same samples stays behind, the
residuals have learnt what the strict weights were to learn.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from equirelax_lab.data import Samples
from equirelax_lab.tasks.task import Task
from equirelax_lab.training.assembly import Assembly
from equirelax_lab.training.evaluation import evaluating
from equirelax_lab.training.module import RelaxedModule

SAMPLES = 500
"""Training samples whose loss is followed, the first ones."""
STEPS = 5
"""Optimiser steps at the end of an epoch whose size is measured: enough for a mean, few enough to cost nothing."""


class TrainingFit:
    """Measures the task's loss on a fixed part of the training data, without augmentation, in evaluation mode.

    Args:
        assembly: The run's objects.
        train: Training samples.
    """

    def __init__(self, assembly: Assembly, train: Samples) -> None:
        self.assembly = assembly
        self.part: Samples = train.subset(slice(0, SAMPLES))

    def to(self, trainer: Trainer, device: torch.device) -> None:
        """Keep this rank's share, on its device."""
        self.part = self.part.subset(slice(trainer.global_rank, None, trainer.world_size)).to(device)

    def losses(self, trainer: Trainer) -> dict[str, float]:
        """Columns fit/projected and fit/relaxed: means over the samples and ranks; equal without a relaxation."""
        task, model, relaxation = self.assembly.task, self.assembly.model, self.assembly.relaxation
        relaxed = projected = loss_sum(task, model, self.part)
        if relaxation is not None:
            with relaxation.strict():
                projected = loss_sum(task, model, self.part)
        count = relaxed.new_tensor(float(len(self.part)))
        sums = trainer.strategy.reduce(torch.stack([projected, relaxed, count]), reduce_op="sum")
        first, second, total = torch.as_tensor(sums).tolist()
        return {"fit/projected": first / total, "fit/relaxed": second / total}


def loss_sum(task: Task, model: nn.Module, data: Samples) -> Tensor:
    """Sum of the task's loss over samples, 0-dimensional, float64."""
    total = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    with evaluating(model):
        for start in range(0, len(data), task.chunk):
            rows = range(start, min(start + task.chunk, len(data)))
            batch = task.eval_batch(data, rows)
            total += len(rows) * task.loss(task.predict(model, batch), batch).double()
    return total


class StepSizes(Callback):
    """Measures by how much an optimiser step changes the strict weights and the residuals' weights.

    Args:
        assembly: The run's objects.
    """

    def __init__(self, assembly: Assembly) -> None:
        relaxation = assembly.relaxation
        strict = (
            assembly.model.parameters() if relaxation is None else relaxation.strict_parameters().values()
        )
        self.weights: dict[str, list[nn.Parameter]] = {"strict": list(strict)}
        if relaxation is not None:
            self.weights["residual"] = list(relaxation.residual_parameters().values())
        self._index = 0
        self._before: dict[str, list[Tensor]] = {}
        self._squares: dict[str, list[Tensor]] = {}

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note which step of the epoch begins."""
        self._index = batch_idx

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        """Copy the weights before one of the epoch's last steps."""
        if not isinstance(module, RelaxedModule):
            return
        if self._index // module.loader.parts >= module.loader.batches - STEPS:
            self._before = {name: [p.detach().clone() for p in own] for name, own in self.weights.items()}

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare with the weights after it."""
        before, self._before = self._before, {}
        for name, copies in before.items():
            pairs = zip(self.weights[name], copies, strict=True)
            square = torch.stack([(p.detach() - copy).square().sum() for p, copy in pairs]).sum()
            self._squares.setdefault(name, []).append(square)

    def epoch_sizes(self) -> dict[str, float]:
        """Columns update/strict and update/residual: root mean square of the change of a weight in a step."""
        found, self._squares = self._squares, {}
        return {
            f"update/{name}": math.sqrt(
                float(torch.stack(squares).mean()) / sum(p.numel() for p in self.weights[name])
            )
            for name, squares in found.items()
        }
