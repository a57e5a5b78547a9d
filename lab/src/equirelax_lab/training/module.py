"""The Lightning module: the task's loss, and what the method adds to it."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor

from equirelax_lab.data import Samples
from equirelax_lab.tasks.task import Batch
from equirelax_lab.training.assembly import Assembly, build_optimizer, build_scheduler
from equirelax_lab.training.loader import EpochLoader, epoch_seed


class RelaxedModule(lightning.LightningModule):
    """Trains `assembly.model` on `train`.

    Means over an epoch are summed on the device and read once at its end: a step logs nothing.

    Args:
        assembly: Task, model, relaxation and method.
        train: Training samples.

    Attributes:
        loader: Whose batches `training_step` is given; `train_dataloader` makes it.
    """

    loader: EpochLoader

    def __init__(self, assembly: Assembly, train: Samples) -> None:
        super().__init__()
        self.model = assembly.model
        self.assembly = assembly
        self.train_data = train
        self._sums: Tensor | None = None
        self._steps = 0

    def configure_optimizers(self) -> Any:
        """The configured optimiser, and the schedule of its learning rate, moved once an epoch."""
        optimizer = build_optimizer(self.assembly)
        scheduler = build_scheduler(self.assembly.config, optimizer)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def train_dataloader(self) -> EpochLoader:
        """This rank's share of every batch, on this rank's device."""
        config = self.assembly.config
        self.loader = EpochLoader(
            self.train_data,
            self.assembly.task.train_batch,
            config.training.batch_size,
            config.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.device,
            self.assembly.task.smallest_batch,
            self.trainer.accumulate_grad_batches,
            config.training.drop_last,
        )
        return self.loader

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The task's loss and what the method adds to it; of a part of a batch, its share of the batch's, times the
        number of parts, which Lightning divides by.
        """
        task, method, parts = self.assembly.task, self.assembly.method, self.loader.parts
        share, last = self.loader.share(index), self.loader.completes(index)
        loss = task.loss(task.predict(self.model, batch), batch)
        own = task.regulariser(self.model)
        loss = share * (loss if own is None else loss + own)

        drawn = (index % parts,) if parts > 1 else ()  # every part draws elements of its own

        def moved_loss() -> Tensor:
            generator = torch.Generator().manual_seed(
                epoch_seed(self.assembly.config.seed, self.global_step, self.global_rank, *drawn)
            )
            moved = task.moved(batch, generator)
            return share * task.loss(task.predict(self.model, moved), moved)

        objective = loss if method is None else method.objective(loss, moved_loss, last=last)
        with torch.no_grad():
            both = torch.stack([loss, (objective - loss).to(loss.dtype)])
            self._sums = both if self._sums is None else self._sums + both
        self._steps += last
        return parts * objective

    def epoch_means(self) -> dict[str, float]:
        """Mean task loss and penalty over steps and ranks since the last call; then starts anew."""
        if self._sums is None:
            return {}
        means = self.trainer.strategy.reduce(self._sums / self._steps, reduce_op="mean")
        loss, penalty = torch.as_tensor(means).tolist()
        self._sums, self._steps = None, 0
        return {"train/loss": loss, "train/penalty": penalty}
