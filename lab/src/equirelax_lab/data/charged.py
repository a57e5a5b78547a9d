"""Simulate charged particles, as in the EGNN/SEGNN N-body benchmark, for many trajectories at once.

n bodies of unit mass and charge q_i = +-1 interact by F_i = sum_j q_i q_j (x_i - x_j) / |x_i - x_j|^3. The
integrator is symplectic Euler with a full kick first, as in the benchmark's public generator:

    v += dt F(x);   then repeat:  x += dt v;  (every 100 steps: save x, v);  v += dt F(x)

Frame k is the state after 100 (k + 1) drifts and before the next kick. Forces are clamped, see `CLAMPS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event

import numpy as np
import torch
from torch import Tensor

from equirelax.errors import DataError
from equirelax_lab.data.blocks import STEPS_PER_FRAME, TIME_STEP, Trajectories, check_states, run_blocks

BODIES = 5
SPEED = 0.5
CLAMP_LIMIT = 100.0
CLAMPS = ("component", "norm")
"""`component`: every component of the total force on a body is clamped to +-100, as in the public data. This happens in about
half of all trajectories and breaks their rotation symmetry. `norm`: forces above norm 100 are scaled down to it, which is
equivariant."""

CHUNK = 1024
"""Trajectories per block. The workspace of about 1 MB stays in a core's cache. This is part of the data's definition: initial
states are drawn block by block and blocks are simulated whole, so that results do not depend on the number of
trajectories."""


def initial_states(rng: np.random.Generator, count: int = CHUNK) -> tuple[Tensor, Tensor, Tensor]:
    """Draw positions (count, 5, 3) from N(0, 1), velocities (count, 5, 3) of norm 0.5, and charges (count, 5) of +-1."""
    positions = rng.standard_normal((count, BODIES, 3))
    velocities = rng.standard_normal((count, BODIES, 3))
    velocities *= SPEED / np.linalg.norm(velocities, axis=-1, keepdims=True)
    charges = rng.integers(0, 2, (count, BODIES)) * 2.0 - 1.0
    return torch.from_numpy(positions), torch.from_numpy(velocities), torch.from_numpy(charges)


class _Forces:
    """Computes the forces on a block of trajectories, the contiguous axis, in place without allocating memory."""

    def __init__(self, positions: Tensor, charges: Tensor, clamp: str) -> None:
        _, n, count = positions.shape  # (3, n, count)
        pairs = n * (n - 1) // 2
        new = positions.new_empty
        self.force = new(3, n, count)
        self.difference = new(3, pairs, count)
        self.weight, self.scratch, self.total = new(pairs, count), new(pairs, count), new(3, count)
        self.charge_products = new(pairs, count)
        self.blocks = []  # for every body i the pairs (i, j), j > i, as views of the workspace
        start = 0
        for i in range(n - 1):
            rows = slice(start, start + n - 1 - i)
            start = rows.stop
            self.charge_products[rows] = charges[i + 1 :] * charges[i]
            views = (positions[:, i + 1 :], positions[:, i : i + 1], self.difference[:, rows])
            self.blocks.append((*views, self.force[:, i + 1 :], self.force[:, i]))
        self.clamp = clamp
        shape = (3, n, count) if clamp == "component" else (n, count)
        self.high, self.low = positions.new_zeros(shape), positions.new_zeros(shape)
        self.norm = new(n, count)

    def update(self) -> Tensor:
        """Compute the clamped forces (3, n, count) at the present positions, and record where the clamp acted."""
        difference, weight = self.difference, self.weight
        for later, own, out, _, _ in self.blocks:
            torch.sub(later, own, out=out)  # x_j - x_i
        torch.mul(difference[0], difference[0], out=weight)
        weight.addcmul_(difference[1], difference[1]).addcmul_(difference[2], difference[2])
        torch.sqrt(weight, out=self.scratch)
        weight.mul_(self.scratch)  # |r|^3
        torch.div(self.charge_products, weight, out=weight)
        difference.mul_(weight)  # the force of i on j
        self.force.zero_()
        for _, _, pair_force, later, own in self.blocks:
            later.add_(pair_force)
            own.sub_(torch.sum(pair_force, 1, out=self.total))
        return self._clamp()

    def _clamp(self) -> Tensor:
        force = self.force
        if self.clamp == "component":
            torch.maximum(self.high, force, out=self.high)
            torch.minimum(self.low, force, out=self.low)
            return force.clamp_(-CLAMP_LIMIT, CLAMP_LIMIT)
        norm = torch.mul(force[0], force[0], out=self.norm)
        norm.addcmul_(force[1], force[1]).addcmul_(force[2], force[2]).sqrt_()
        torch.maximum(self.high, norm, out=self.high)
        torch.div(CLAMP_LIMIT, norm.clamp_(min=CLAMP_LIMIT), out=norm)  # exactly 1 below the limit
        return force.mul_(norm)

    def clamped(self) -> Tensor:
        """Whether the clamp has acted on a body of the trajectory so far, (count,) bool."""
        acted = (self.high > CLAMP_LIMIT) | (self.low < -CLAMP_LIMIT)
        return acted.flatten(0, -2).any(0)


def simulate(
    positions: Tensor,
    velocities: Tensor,
    charges: Tensor,
    frames: Sequence[int],
    *,
    clamp: str = "component",
    steps_per_frame: int = STEPS_PER_FRAME,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Trajectories:
    """Simulate N trajectories at once and keep some frames.

    Args:
        positions, velocities: (N, bodies, 3); the computation is in float64.
        charges: (N, bodies).
        frames: Increasing frame numbers k >= 0. Frame k is the state after steps_per_frame * (k + 1) drifts.
        clamp: See `CLAMPS`.
        threads: Number of blocks that are simulated in parallel.
        progress: Called as progress(trajectories finished, N) after every block, in the caller's thread.

    Raises:
        DataError: Shapes, frames or clamp do not fit.
    """
    check_states(positions, velocities, frames)
    if charges.shape != positions.shape[:2]:
        expected = tuple(positions.shape[:2])
        raise DataError(f"charges must be {expected} (N, bodies); got {tuple(charges.shape)}.")
    if clamp not in CLAMPS:
        raise DataError(f"Unknown clamp {clamp!r} for the charged system; choose one of {', '.join(CLAMPS)}.")
    count, n, _ = positions.shape
    out = Trajectories.empty(count, len(frames), n)

    def block(rows: slice, stop: Event) -> None:
        # (count, bodies, 3) -> (3, bodies, count): trajectories contiguous
        x, v = (t[rows].double().permute(2, 1, 0).contiguous() for t in (positions, velocities))
        forces = _Forces(x, charges[rows].double().T.contiguous(), clamp)
        saved_at = {steps_per_frame * (frame + 1): index for index, frame in enumerate(frames)}
        for step in range(1, max(saved_at) + 1):
            v.add_(forces.update(), alpha=TIME_STEP)
            x.add_(v, alpha=TIME_STEP)
            if step in saved_at:
                out.positions[rows, saved_at[step]] = x.permute(2, 1, 0)
                out.velocities[rows, saved_at[step]] = v.permute(2, 1, 0)
            if step % 100 == 0 and stop.is_set():
                return
        out.clamped[rows] = forces.clamped()

    run_blocks(block, count, CHUNK, threads=threads, progress=progress)
    return out
