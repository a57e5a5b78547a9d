"""The charged simulator: against a slow loop, physics, symmetry, and known figures of the published data."""

from __future__ import annotations

import numpy as np
import pytest
import slow_simulators
import torch
from equirelax_lab.data import charged
from equirelax_lab.data.blocks import TIME_STEP, Trajectories, run_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equirelax.errors import DataError

States = tuple[Tensor, Tensor, Tensor]


def pair_forces(x: Tensor, q: Tensor) -> Tensor:
    """Unclamped forces (N, F, n, 3) at positions x (N, F, n, 3), charges q (N, n)."""
    r = x[..., :, None, :] - x[..., None, :, :]
    weight = (q[:, None, :, None] * q[:, None, None, :]) / r.norm(dim=-1) ** 3
    weight = weight.masked_fill(torch.eye(x.shape[-2], dtype=torch.bool), 0.0)
    return (weight[..., None] * r).sum(-2)


def energy(x: Tensor, v: Tensor, q: Tensor) -> Tensor:
    """Energy (N, F), with the velocity brought from half a step before x to the time of x."""
    v = v + TIME_STEP / 2 * pair_forces(x, q)
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2], 1)
    potential = q[:, None, i] * q[:, None, j] / (x[..., i, :] - x[..., j, :]).norm(dim=-1)
    return v.square().sum((-1, -2)) / 2 + potential.sum(-1)


@pytest.mark.parametrize("clamp", charged.CLAMPS)
def test_agrees_with_the_slow_loop(charged_states: States, clamp: str) -> None:
    x, v, q = (t[:6] for t in charged_states)
    out = charged.simulate(x, v, q, [0], clamp=clamp, threads=1)
    for n in range(6):
        slow_x, slow_v = slow_simulators.charged(x[n].tolist(), v[n].tolist(), q[n].tolist(), clamp, 100)
        assert (out.positions[n, 0] - torch.tensor(slow_x, dtype=torch.float64)).abs().max() < 1e-9
        assert (out.velocities[n, 0] - torch.tensor(slow_v, dtype=torch.float64)).abs().max() < 1e-9


@pytest.mark.parametrize("clamp", charged.CLAMPS)
def test_agrees_with_the_slow_loop_where_the_clamp_acts(charged_states: States, clamp: str) -> None:
    x, v, q = (t[:6] for t in charged_states)
    x = 0.05 * x
    out = charged.simulate(x, v, q, [0], clamp=clamp, threads=1, steps_per_frame=20)
    assert out.clamped.any()
    for n in range(6):
        slow_x, _ = slow_simulators.charged(x[n].tolist(), v[n].tolist(), q[n].tolist(), clamp, 20)
        assert (out.positions[n, 0] - torch.tensor(slow_x, dtype=torch.float64)).abs().max() < 1e-9


@settings(deadline=None, max_examples=10)
@given(bodies=st.integers(2, 7), count=st.integers(1, 9), seed=st.integers(0, 99))
def test_any_number_of_bodies(bodies: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, v = torch.randn(2, count, bodies, 3, dtype=torch.float64, generator=generator)
    q = torch.randint(0, 2, (count, bodies), generator=generator) * 2.0 - 1.0
    out = charged.simulate(x, v, q, [0], steps_per_frame=1, threads=1)
    force = pair_forces(x[:, None], q.double())[:, 0].clamp(-100, 100)
    expected = v + TIME_STEP * force
    torch.testing.assert_close(out.velocities[:, 0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(out.positions[:, 0], x + TIME_STEP * expected, rtol=0, atol=1e-12)


def test_energy_is_kept_where_the_clamp_never_acts(charged_states: States, charged_run: Trajectories) -> None:
    x, v, q = charged_states
    before = energy(x[:, None], v[:, None], q)
    error = (energy(charged_run.positions, charged_run.velocities, q) - before).abs() / before.abs()
    assert error[~charged_run.clamped].max() < 0.02
    # the clamp is what breaks it
    assert error[charged_run.clamped].median() > 0.02


@pytest.mark.parametrize("element", [0, 1])
def test_equivariant_under_the_norm_clamp(charged_states: States, rotation: Tensor, element: int) -> None:
    x, v, q = (t[:64] for t in charged_states)
    x = torch.cat([x[:32], 0.3 * x[32:]])  # the second half is dense, so that the clamp acts
    turn = rotation[element].T
    out = charged.simulate(x, v, q, [0], clamp="norm", threads=1)
    turned = charged.simulate(x @ turn, v @ turn, q, [0], clamp="norm", threads=1)
    assert out.clamped.any()
    assert not out.clamped.all()
    assert (out.positions @ turn - turned.positions).abs().max() < 1e-9
    shift = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    moved = charged.simulate(x + shift, v, q, [0], clamp="norm", threads=1)
    assert (out.positions + shift - moved.positions)[~out.clamped].abs().max() < 1e-9


def test_the_component_clamp_breaks_rotations_exactly_where_it_acts(
    charged_states: States, rotation: Tensor
) -> None:
    x, v, q = (t[:64] for t in charged_states)
    x, turn = 0.3 * x, rotation[0].T
    out = charged.simulate(x, v, q, [0], threads=1)
    turned = charged.simulate(x @ turn, v @ turn, q, [0], threads=1)
    error = (out.positions @ turn - turned.positions).abs().flatten(1).amax(1)
    acted = out.clamped | turned.clamped
    assert error[acted].median() > 1e-6
    assert error[~acted].max() < 1e-9


def test_initial_states() -> None:
    x, v, q = charged.initial_states(np.random.default_rng(0), 20_000)
    assert abs(q.mean()) < 0.02
    assert set(q.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(v.norm(dim=-1), torch.full(v.shape[:2], 0.5, dtype=v.dtype))
    assert v.mean((0, 1)).abs().max() < 0.01
    assert abs(x.std() - 1) < 0.01


def test_clamp_acts_in_about_half_of_all_trajectories(charged_run: Trajectories) -> None:
    assert 0.4 < charged_run.clamped.double().mean() < 0.55


def linear_error(run: Trajectories) -> float:
    """Mean squared error of x30 + 1.0 v30 for x40."""
    guess = run.positions[:, -2] + run.velocities[:, -2]
    return (guess - run.positions[:, -1]).square().mean().item()


def test_linear_extrapolation_roughly(charged_run: Trajectories) -> None:
    assert 0.09 < linear_error(charged_run) < 0.14


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_linear_extrapolation_on_many_trajectories() -> None:
    x, v, q = charged.initial_states(np.random.default_rng(0), 200_000)
    assert 0.11 <= linear_error(charged.simulate(x, v, q, [30, 40])) <= 0.12


def test_threads_do_not_change_a_bit(charged_states: States) -> None:
    x, v, q = charged_states
    one, two = (charged.simulate(x, v, q, [0, 1], threads=threads) for threads in (1, 2))
    assert torch.equal(one.positions, two.positions)
    assert torch.equal(one.velocities, two.velocities)


def test_torch_does_not_start_threads_in_our_threads() -> None:
    """They would wait for each other: on two cores a simulation took nine times as long."""
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        run_blocks(lambda rows, stop: seen.append(torch.get_num_threads()), 4, 2, threads=2, progress=None)
        assert seen == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_inputs_are_left_alone_and_progress_is_told(charged_states: States) -> None:
    x, v, q = (t.clone() for t in charged_states)
    told: list[tuple[int, int]] = []
    charged.simulate(x, v, q, [0], steps_per_frame=2, progress=lambda done, of: told.append((done, of)))
    assert told == [(1024, 2048), (2048, 2048)]
    assert all(torch.equal(a, b) for a, b in zip((x, v, q), charged_states, strict=True))


def test_an_error_in_a_block_or_in_progress_reaches_the_caller(charged_states: States) -> None:
    def interrupt(done: int, count: int) -> None:
        raise KeyboardInterrupt

    x, v, q = charged_states
    with pytest.raises(KeyboardInterrupt):
        charged.simulate(x, v, q, [0], progress=interrupt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clamp": "norms"}, "Unknown clamp 'norms'"),
        ({"frames": [3, 1]}, "increasing"),
        ({"frames": []}, "increasing"),
        ({"charges": torch.ones(2, 4)}, r"charges must be \(2, 5\)"),
        ({"velocities": torch.ones(2, 4, 3)}, "must both be"),
    ],
)
def test_misfits_are_named(change: dict[str, object], message: str) -> None:
    arguments = {
        "positions": torch.ones(2, 5, 3),
        "velocities": torch.ones(2, 5, 3),
        "charges": torch.ones(2, 5),
    }
    with pytest.raises(DataError, match=message):
        charged.simulate(**{**arguments, "frames": [0], **change})  # type: ignore[arg-type]
