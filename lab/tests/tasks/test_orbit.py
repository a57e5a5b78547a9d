"""The orbit of gamma under two Adams, against torch's own Adam and the numbers of a run."""

from __future__ import annotations

import pytest
import torch
from equirelax_lab.tasks.orbit import describe, simulate

from equirelax.errors import ConfigError


@pytest.mark.parametrize(("curvature", "residuals"), [(0.0, 1), (0.3, 4)])
def test_it_is_what_two_optimizers_of_torch_do(curvature: float, residuals: int) -> None:
    gamma = torch.ones(1, dtype=torch.float64, requires_grad=True)
    multiplier = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.Adam([gamma], lr=0.02)
    ascent = torch.optim.Adam([multiplier], lr=0.03, eps=1e-4, maximize=True)
    expected = [1.0]
    for _ in range(200):
        (multiplier.detach() * gamma / residuals + curvature / 2 * gamma**2).sum().backward()
        (multiplier * gamma.detach()).sum().backward()
        descent.step()
        ascent.step()
        descent.zero_grad()
        ascent.zero_grad()
        expected.append(float(gamma.detach()))
    found, _ = simulate(200, lr=0.02, dual_lr=0.03, dual_eps=1e-4, curvature=curvature, residuals=residuals)
    assert found == pytest.approx(expected, abs=1e-12)


def test_without_curvature_gamma_circles_with_an_amplitude_and_a_period_that_no_task_sets() -> None:
    """Period near 1,740 steps, amplitude near 392 learning rates, whatever the rates and the start."""
    for lr, dual_lr in ((9e-4, 8e-4), (1.8e-3, 8e-4), (9e-4, 8e-2)):
        found = describe(simulate(40_000, lr=lr, dual_lr=dual_lr)[0])
        assert found["half_periods"][-1] == pytest.approx(870, rel=0.02)
        assert found["amplitudes"][-1] / lr == pytest.approx(392, rel=0.02)


def test_the_multipliers_learning_rate_does_not_matter() -> None:
    slow, fast = (simulate(3000, dual_lr=rate)[0] for rate in (8e-4, 8e-2))
    assert slow == pytest.approx(fast, abs=1e-4)


def test_curvature_damps_it() -> None:
    """Each half-turn is smaller than the one before by a factor that falls with the curvature."""
    ratios = []
    for curvature in (0.0, 0.1, 1.0):
        amplitudes = describe(simulate(8000, curvature=curvature)[0])["amplitudes"]
        ratios.append(amplitudes[2] / amplitudes[1])
    assert 0.9 < ratios[0] < 1
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratios[2] < 0.4
    assert abs(simulate(8000, curvature=1.0)[0][-1]) < 1e-6


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"curvature": -1.0}, {"residuals": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        simulate(10, **wrong)  # type: ignore[arg-type]
