"""The objective of a training step: the task's loss on a batch, and the method's term."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equirelax_lab.tasks.task import Batch
from equirelax_lab.training.assembly import Assembly
from equirelax_lab.training.loader import EpochLoader, epoch_seed


class Objective(nn.Module):
    """A module around the network, so that DDP covers the loss and the penalty as well as the forward pass.

    Args:
        assembly: The run's task, network and method.
        loader: The loader of the batches that are passed to `forward`.
        autocast: Whether autocast computes products in bfloat16. Fabric's own mixed precision is not used: it rounds the
            batch, including positions and targets, to bfloat16, and it casts a weight once for all its uses, so that their
            gradients add up in bfloat16.
    """

    def __init__(self, assembly: Assembly, loader: EpochLoader, autocast: bool = False) -> None:
        super().__init__()
        self.model = assembly.model
        self.assembly, self.loader, self.autocast = assembly, loader, autocast

    def forward(self, batch: Batch, index: int, step: int) -> tuple[Tensor, Tensor]:
        """Compute the objective of a batch, or of one part of it.

        Args:
            batch: Part `index` of the epoch, as the loader made it.
            index: Number of the part in the epoch. All parts of a batch add up to the batch's objective.
            step: Number of optimizer steps taken so far; it seeds the group elements that REMUL draws.

        Returns:
            The objective, a scalar with gradients, and (2,) the task's loss and the method's term, detached.
        """
        device = self.loader.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast, cache_enabled=False):
            return self._terms(batch, index, step)

    def _loss(self, batch: Batch) -> Tensor:
        """The task's loss, with the share of the projected network's if that is configured."""
        task, relaxation = self.assembly.task, self.assembly.relaxation
        share = self.assembly.config.training.projected_share
        loss = task.loss(task.predict(self.model, batch), batch)
        if not share or relaxation is None:
            return loss
        with relaxation.strict():
            projected = task.loss(task.predict(self.model, batch), batch)
        return (1 - share) * loss + share * projected

    def _terms(self, batch: Batch, index: int, step: int) -> tuple[Tensor, Tensor]:
        task, method, parts = self.assembly.task, self.assembly.method, self.loader.parts
        share, last = self.loader.share(index), self.loader.completes(index)
        loss = self._loss(batch)
        own = task.regulariser(self.model)
        loss = share * (loss if own is None else loss + own)

        def moved_loss() -> Tensor:
            # The last number is not 0: otherwise rank 0 would draw the loader's numbers of epoch `step`.
            numbers = (step, self.loader.rank, index % parts, 1)
            generator = torch.Generator().manual_seed(epoch_seed(self.assembly.config.seed, *numbers))
            moved = task.moved(batch, generator)
            return share * task.loss(task.predict(self.model, moved), moved)

        objective = loss if method is None else method.objective(loss, moved_loss, last=last)
        with torch.no_grad():
            terms = torch.stack([loss, (objective - loss).to(loss.dtype)])
        return objective.to(torch.promote_types(objective.dtype, torch.float32)), terms
