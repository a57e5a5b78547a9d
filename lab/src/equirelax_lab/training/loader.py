"""Batches of a data set in memory, whose order and augmentation depend only on the seed and the epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from equirelax_lab.data import Samples
from equirelax_lab.tasks.task import Batch

MakeBatch = Callable[[Samples, torch.Tensor, torch.Generator, slice], Batch]
"""The signature of `Task.train_batch`."""


class EpochLoader:
    """Iterates over shuffled batches.

    All randomness of an epoch comes from a generator that is seeded with (seed, epoch), so that a resumed run sees
    the same batches in the same order. Several ranks share every batch.

    Args:
        data: The samples; they are moved to `device` once.
        make: Makes a batch from the data, the batch's samples, a generator and this rank's share, like
            `Task.train_batch`.
        batch_size: Samples in a batch, over all ranks; the last batch of an epoch may be smaller.
        seed: Seed of the order and the augmentation.
        rank: Number of this process.
        world: Number of processes.
        device: The device of the batches.
        smallest: Samples that every rank needs in every part of a batch; batches with fewer are left out.
        parts: Number of parts into which every batch is split.
        drop_last: Whether the last batch of an epoch is left out if it is smaller than the others.
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
        self.device = torch.device(device)
        self.data, self.make = data.to(self.device), make
        self.count = len(data)
        self.batch_size = min(batch_size, self.count)
        self.seed, self.rank, self.world = seed, rank, world
        self.parts, self.drop_last = parts, drop_last
        self.least = smallest * world * parts
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    @property
    def batches(self) -> int:
        """Number of batches in an epoch, which is the number of optimizer steps."""
        # A last batch with fewer samples than ranks would leave a rank without work and the others waiting for it, and
        # batch norm of a single sample is an error.
        full, rest = divmod(self.count, self.batch_size)
        return full * (self.batch_size >= self.least) + (rest >= self.least and not self.drop_last)

    def __len__(self) -> int:
        """Number of parts of all batches."""
        return self.batches * self.parts

    def begins(self, index: int) -> bool:
        """Whether part `index` of the epoch is the first of its batch."""
        return index % self.parts == 0

    def completes(self, index: int) -> bool:
        """Whether part `index` of the epoch is the last of its batch, so that the optimizer steps after it."""
        return (index + 1) % self.parts == 0

    def share(self, index: int) -> float:
        """The weight of part `index` in the mean over its batch, times the number of ranks, over which gradients are
        averaged: its share of the batch's samples. It is 1 if a batch is neither split nor shared.
        """
        batch, part = divmod(index, self.parts)
        size = min(self.batch_size, self.count - batch * self.batch_size)
        return self.world * len(range(size)[self._slice(part)]) / size

    def _slice(self, part: int) -> slice:
        """The position of this rank's samples of a part in the batch."""
        return slice(self.rank + self.world * part, None, self.world * self.parts)

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator)
        for index in range(self.batches):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            before = generator.get_state()
            for part in range(self.parts):
                generator.set_state(before)  # all parts share what is drawn for the whole batch
                yield self.make(self.data, chosen, generator, self._slice(part))


def epoch_seed(seed: int, *numbers: int) -> int:
    """A seed for one epoch, or another numbered part, of one run.

    torch's CPU generator reads only the low 32 bits of a seed, so the numbers are mixed into 32 bits.
    """
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1)[0])
