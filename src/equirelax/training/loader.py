"""Batches of a data set that lies in memory: an order and random group elements that depend on seed and epoch
alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from equirelax.benchmarks.task import Batch
from equirelax.data import GraphSet, random_rotation


class EpochLoader:
    """Iterates over shuffled batches.

    All randomness of an epoch comes from a generator seeded with (seed, epoch), so that a resumed run sees
    the same batches in the same order. With several ranks every batch is split between them.

    Args:
        data: The samples; moved to `device` once.
        batch_size: Samples of a batch, over all ranks; the last batch of an epoch may be smaller.
        seed: Seed of order and augmentation.
        rotate: Turn every batch by one random rotation (CR and ACE, N-body).
        rank, world: This process and the number of processes.
        device: Where batches are wanted.
    """

    def __init__(
        self,
        data: GraphSet,
        batch_size: int,
        seed: int,
        rotate: bool = False,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data = data.to(device)
        self.count = len(data)
        self.batch_size = min(batch_size, self.count)
        self.seed, self.rotate, self.rank, self.world = seed, rotate, rank, world
        self.epoch = 0

    @property
    def sampler(self) -> EpochLoader:
        """Lightning calls `sampler.set_epoch` before every epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration belongs to."""
        self.epoch = epoch

    def __len__(self) -> int:
        # A last batch with fewer samples than ranks would leave a rank without work, the others waiting.
        full, rest = divmod(self.count, self.batch_size)
        return full + (rest >= self.world)

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator)
        for index in range(len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size][self.rank :: self.world]
            yield self.data.batch(chosen, random_rotation(generator) if self.rotate else None)


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch of one run.

    torch's CPU generator looks at the low 32 bits of a seed alone, so the pair is mixed into 32 bits.
    """
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
