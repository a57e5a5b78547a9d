"""The gravity simulator: against a slow loop, physics, symmetry."""

from __future__ import annotations

import numpy as np
import slow_simulators
import torch
from equirelax_lab.data import gravity
from torch import Tensor


def energy(x: Tensor, v: Tensor) -> Tensor:
    """Energy (N, F) of x, v (N, F, n, 3): kinetic, and -1 / sqrt(r^2 + eps^2) for every pair."""
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2], 1)
    squared = (x[..., i, :] - x[..., j, :]).square().sum(-1)
    return v.square().sum((-1, -2)) / 2 - (squared + gravity.SOFTENING**2).rsqrt().sum(-1)


def test_agrees_with_the_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 3, 7, 3, dtype=torch.float64, generator=generator)
    out = gravity.simulate(x, v, [0, 1], threads=1)
    assert torch.equal(out.positions[:, 0], x)  # frame 0 is the initial state
    assert torch.equal(out.velocities[:, 0], v)
    for n in range(3):
        slow_x, slow_v = slow_simulators.gravity(x[n].tolist(), v[n].tolist(), 100)
        assert (out.positions[n, 1] - torch.tensor(slow_x, dtype=torch.float64)).abs().max() < 1e-9
        assert (out.velocities[n, 1] - torch.tensor(slow_v, dtype=torch.float64)).abs().max() < 1e-9


def test_energy_momentum_and_symmetry(rotation: Tensor) -> None:
    x, v = gravity.initial_states(np.random.default_rng(0), 2)
    assert v.mean(1).abs().max() < 1e-14
    out = gravity.simulate(x, v, [0, 1, 2])
    before = energy(x[:, None], v[:, None])
    assert ((energy(out.positions, out.velocities) - before) / before).abs().max() < 1e-3
    assert out.velocities.mean(2).abs().max() < 1e-12
    assert not out.clamped.any()
    turn = rotation[1].T
    turned = gravity.simulate(x @ turn, v @ turn, [1])
    assert (out.positions[:, 1:2] @ turn - turned.positions).abs().max() < 1e-9
