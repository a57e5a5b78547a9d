"""Simulate trajectories block by block: code that the charged and the gravity simulator share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor

from equirelax.errors import DataError

TIME_STEP = 0.001
STEPS_PER_FRAME = 100


@dataclass
class Trajectories:
    """Saved positions and velocities (N, frames, bodies, 3) float64, and whether a force was clamped, (N,) bool."""

    positions: Tensor
    velocities: Tensor
    clamped: Tensor

    @classmethod
    def empty(cls, count: int, frames: int, bodies: int) -> Trajectories:
        """Allocate states that are filled block by block; clamped starts as False."""
        positions, velocities = torch.empty((2, count, frames, bodies, 3), dtype=torch.float64)
        return cls(positions, velocities, torch.zeros(count, dtype=torch.bool))


def check_states(positions: Tensor, velocities: Tensor, frames: Sequence[int]) -> None:
    """Raise `DataError` unless both tensors are (N, bodies, 3) and `frames` increase from 0 or more."""
    if positions.ndim != 3 or positions.shape[-1] != 3 or velocities.shape != positions.shape:
        raise DataError(
            "positions and velocities must both be (N, bodies, 3); "
            f"got {tuple(positions.shape)} and {tuple(velocities.shape)}."
        )
    if not frames or list(frames) != sorted(set(frames)) or frames[0] < 0:
        raise DataError(f"frames must be increasing numbers from 0 on; got {list(frames)}.")


def run_blocks(
    work: Callable[[slice, Event], None],
    count: int,
    size: int,
    *,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Call work(rows, stop) for blocks of at most `size` of `count` rows, `threads` at a time.

    `progress(rows finished, count)` is called in the caller's thread. After an error or an interrupt there, blocks that have not
    started are dropped and `stop` is set, which running work should check now and then.
    """
    blocks = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    stop, before = Event(), torch.get_num_threads()
    # Otherwise torch's own threads would wait for each other in each of ours, which takes several times as long.
    with ThreadPoolExecutor(max(1, threads), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(work, rows, stop) for rows in blocks]
        try:
            for rows, future in zip(blocks, futures, strict=True):
                future.result()
                if progress is not None:
                    progress(rows.stop, count)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(
                before
            )  # the setting of the pool would also apply to threads that are started later
