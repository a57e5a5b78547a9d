"""Batches of a data set that lies in memory: an order and random group elements that depend on seed and epoch
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from equirelax_lab.data import Samples
from equirelax_lab.tasks.task import Batch

MakeBatch = Callable[[Samples, torch.Tensor, torch.Generator, slice], Batch]
"""See `Task.train_batch`."""


class EpochLoader:
    """Iterates over shuffled batches.

    All randomness of an epoch comes from a generator seeded with (seed, epoch), so that a resumed run sees
    the same batches in the same order. With several ranks every batch is split between them.

    Args:
        data: The samples; moved to `device` once.
        make: Makes a batch (`Task.train_batch`): of the data, the batch's samples, a generator, this rank's share.
        batch_size: Samples of a batch, over all ranks; the last batch of an epoch may be smaller.
        seed: Seed of order and augmentation.
        rank, world: This process and the number of processes.
        device: Where batches are wanted.
        smallest: Samples that every rank must have of a batch, and of every part; batches with fewer are left out.
        parts: Give every batch in so many parts, one after the other.
        drop_last: Leave out the last batch of an epoch where it is smaller.
    """

    def __init__(
        self,
        data: Samples,
        make: MakeBatch,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        smallest: int = 1,
        parts: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.data, self.make = data.to(device), make
        self.count = len(data)
        self.batch_size = min(batch_size, self.count)
        self.seed, self.rank, self.world = seed, rank, world
        self.parts, self.drop_last = parts, drop_last
        self.least = smallest * world * parts
        self.epoch = 0

    @property
    def sampler(self) -> EpochLoader:
        """Lightning calls `sampler.set_epoch` before every epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration belongs to."""
        self.epoch = epoch

    @property
    def batches(self) -> int:
        """Batches of an epoch: the optimiser's steps."""
        # A last batch with fewer samples than ranks would leave a rank without work, the others waiting; batch norm
        # of a single sample is an error.
        full, rest = divmod(self.count, self.batch_size)
        return full * (self.batch_size >= self.least) + (rest >= self.least and not self.drop_last)

    def __len__(self) -> int:
        """Parts of all batches."""
        return self.batches * self.parts

    def completes(self, index: int) -> bool:
        """Whether part `index` of the epoch is the last of its batch, so that the optimiser steps after it."""
        return (index + 1) % self.parts == 0

    def share(self, index: int) -> float:
        """The weight of part `index` of the epoch in its batch's mean, times the number of ranks, whose gradients are
        averaged: its samples over those of the batch. 1 where a batch is neither split nor shared.
        """
        batch, part = divmod(index, self.parts)
        size = min(self.batch_size, self.count - batch * self.batch_size)
        return self.world * len(range(size)[self._slice(part)]) / size

    def _slice(self, part: int) -> slice:
        """This rank's samples of a part, among the batch's."""
        return slice(self.rank + self.world * part, None, self.world * self.parts)

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator)
        for index in range(self.batches):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            before = generator.get_state()
            for part in range(self.parts):
                generator.set_state(before)  # what is random is drawn for the whole batch
                yield self.make(self.data, chosen, generator, self._slice(part))


def epoch_seed(seed: int, *numbers: int) -> int:
    """A seed for one epoch (or another numbered part) of one run.

    torch's CPU generator looks at the low 32 bits of a seed alone, so the numbers are mixed into 32 bits.
    """
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1)[0])
