"""Simulate gravity, as in SEGNN's gravity benchmark, for many trajectories at once.

100 bodies of unit mass attract each other with softening eps = 0.1 and G = 1, without any clamp,

    a_i = sum_j (x_j - x_i) / (|x_j - x_i|^2 + eps^2)^(3/2),

integrated by kick-drift-kick leap-frog with dt = 0.001; frame k is the state after 100 k steps (frame 0:
the initial state).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event

import numpy as np
import torch
from torch import Tensor

from equirelax_lab.data.blocks import STEPS_PER_FRAME, TIME_STEP, Trajectories, check_states, run_blocks

BODIES = 100
SOFTENING = 0.1
CHUNK = 16
"""Trajectories per block (two pair matrices of 1.3 MB each). This is part of the data's definition."""


def initial_states(rng: np.random.Generator, count: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Draw positions from N(0, 1), and velocities from N(0, 1) minus their mean over the bodies: (count, 100, 3) each."""
    positions = rng.standard_normal((count, BODIES, 3))
    velocities = rng.standard_normal((count, BODIES, 3))
    velocities -= velocities.mean(1, keepdims=True)
    return torch.from_numpy(positions), torch.from_numpy(velocities)


class _Accelerations:
    """Computes the accelerations of a block of trajectories in place without allocating memory."""

    def __init__(self, positions: Tensor) -> None:
        count, n, _ = positions.shape
        self.positions = positions
        self.difference, self.weight = positions.new_empty(count, n, n), positions.new_empty(count, n, n)
        self.columns = positions.new_ones(count, n, 4)  # x, y, z, 1
        self.sums = positions.new_empty(count, n, 4)
        self.out = positions.new_empty(count, n, 3)

    def update(self) -> Tensor:
        """Compute the accelerations (count, n, 3) at the present positions."""
        x, weight, difference = self.positions, self.weight, self.difference
        weight.fill_(SOFTENING**2)
        for axis in range(3):
            torch.sub(x[:, None, :, axis], x[:, :, None, axis], out=difference)
            weight.addcmul_(difference, difference)
        torch.sqrt(weight, out=difference)
        weight.mul_(difference).reciprocal_()
        # sum_j w_ij (x_j - x_i) = (W x)_i - x_i (W 1)_i: one matrix product
        self.columns[..., :3] = x
        torch.bmm(weight, self.columns, out=self.sums)
        torch.mul(x, self.sums[..., 3:], out=self.out)
        return torch.sub(self.sums[..., :3], self.out, out=self.out)


def simulate(
    positions: Tensor,
    velocities: Tensor,
    frames: Sequence[int],
    *,
    steps_per_frame: int = STEPS_PER_FRAME,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Trajectories:
    """Simulate N trajectories at once and keep some frames.

    Args:
        positions, velocities: (N, bodies, 3); the computation is in float64.
        frames: Increasing frame numbers k >= 0. Frame k is the state after steps_per_frame * k steps.
        threads: Number of blocks that are simulated in parallel.
        progress: Called as progress(trajectories finished, N) after every block, in the caller's thread.

    Raises:
        DataError: Shapes or frames do not fit.
    """
    check_states(positions, velocities, frames)
    count, n, _ = positions.shape
    out = Trajectories.empty(count, len(frames), n)

    def block(rows: slice, stop: Event) -> None:
        x = positions[rows].to(torch.float64, copy=True)
        v = velocities[rows].to(torch.float64, copy=True)
        field = _Accelerations(x)
        saved_at = {steps_per_frame * frame: index for index, frame in enumerate(frames)}
        acceleration = field.update()
        for step in range(max(saved_at) + 1):
            if step in saved_at:
                out.positions[rows, saved_at[step]] = x
                out.velocities[rows, saved_at[step]] = v
            v.add_(acceleration, alpha=TIME_STEP / 2)
            x.add_(v, alpha=TIME_STEP)
            acceleration = field.update()
            v.add_(acceleration, alpha=TIME_STEP / 2)
            if step % 100 == 0 and stop.is_set():
                return

    run_blocks(block, count, CHUNK, threads=threads, progress=progress)
    return out
