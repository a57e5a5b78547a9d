"""The elastic update of resilient ACE, against Algorithm 2 as printed, and against problems whose optimum is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_toys import Quadratic, chain, descend, gammas
from torch import Tensor

import equirelax as er

SLOPES, MINIMA = (1.5, 0.8, 2.0), (0.9, -0.6, 0.02)


def task(strengths: Tensor) -> Tensor:
    """J0 = sum_i a_i/2 (gamma_i - c_i)^2: how much every layer's data want to break the symmetry, by hand."""
    a, c = (torch.tensor(values, dtype=torch.float64) for values in (SLOPES, MINIMA))
    return (0.5 * a * (strengths - c).square()).sum()


def printed(lr: float, dual_lr: float, rho: float, steps: int) -> list[tuple[list[float], ...]]:
    """Algorithm 2 in plain numbers, all right-hand sides at time t: (gamma, u, lambda) after every step."""
    gamma, u, multiplier = [1.0] * 3, [0.0] * 3, [0.0] * 3
    rows = []
    for _ in range(steps):
        before = list(zip(gamma, u, multiplier, SLOPES, MINIMA, strict=True))
        gamma = [g - lr * (a * (g - c) + m * math.copysign(1.0, g) * (g != 0)) for g, _, m, a, c in before]
        u = [s - lr * (rho * s - m) for _, s, m, _, _ in before]
        multiplier = [max(m + dual_lr * (abs(g) - s), 0.0) for g, s, m, _, _ in before]
        rows.append((gamma, u, multiplier))
    return rows


@settings(deadline=None, max_examples=10)
@given(lr=st.floats(0.01, 0.5), dual_lr=st.floats(0.01, 0.8), rho=st.floats(0.2, 3.0))
def test_every_step_is_the_printed_one(lr: float, dual_lr: float, rho: float) -> None:
    relaxation = chain(3)
    method = er.ResilientACE(relaxation, dual_lr=dual_lr, primal_lr=lr, rho=rho)
    for step, (gamma, u, multiplier) in enumerate(printed(lr, dual_lr, rho, 40)):
        descend(relaxation, method, task, [], lr=lr, steps=1)
        for name, ours, theirs in (
            ("gamma", gammas(relaxation), gamma),
            ("slack", method.slacks, u),
            ("multiplier", method.multipliers, multiplier),
        ):
            expected = torch.tensor(theirs, dtype=torch.float64)
            torch.testing.assert_close(
                ours.detach(),
                expected,
                rtol=1e-9,
                atol=1e-12,
                msg=lambda m, n=name, s=step: f"step {s}, {n}: {m}",
            )


@pytest.mark.parametrize("rho", [0.5, 2.0])
def test_at_the_optimum_the_slack_is_the_multiplier_over_rho(rho: float) -> None:
    relaxation = chain(3)
    method = er.ResilientACE(relaxation, dual_lr=0.1, primal_lr=0.2, rho=rho)
    descend(relaxation, method, task, [], lr=0.2, steps=900)
    # min_g a/2 (g - c)^2 + rho/2 g^2: g* = a c / (a + rho), lambda* = rho |g*|
    a, c = (torch.tensor(values, dtype=torch.float64) for values in (SLOPES, MINIMA))
    best = a * c / (a + rho)
    torch.testing.assert_close(gammas(relaxation).detach(), best, rtol=0, atol=1e-8)
    torch.testing.assert_close(method.slacks, best.abs(), rtol=0, atol=1e-8)
    torch.testing.assert_close(method.multipliers, rho * best.abs(), rtol=0, atol=1e-8)
    torch.testing.assert_close(method.slacks, method.multipliers / rho, rtol=0, atol=1e-8)
    # and it names the layers by how much their data want to break the symmetry: a c / (1 + a / rho)
    assert method.multipliers.argmax() == 0
    assert method.multipliers.argmin() == 2


def test_the_largest_multiplier_names_the_layer_not_the_largest_wish() -> None:
    """The multiplier is the price (slope of the loss), which a flat layer far from 0 does not pay."""

    def flat_and_steep(strengths: Tensor) -> Tensor:
        return 0.05 * (strengths[0] - 2.0).square() + 2.0 * (strengths[1] - 0.5).square()

    relaxation = chain(2)
    method = er.ResilientACE(relaxation, dual_lr=0.1, primal_lr=0.2)
    descend(relaxation, method, flat_and_steep, [], lr=0.2, steps=1000)
    torch.testing.assert_close(
        method.multipliers, torch.tensor([0.2 / 1.1, 2.0 / 5.0], dtype=torch.float64), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("initial", [-1.0, 0.3])
def test_the_optimum_does_not_depend_on_the_start(initial: float) -> None:
    relaxation = chain(2)
    problem = Quadratic(2)
    method = er.ResilientACE(relaxation, dual_lr=0.1, primal_lr=0.2, initial=initial)
    descend(relaxation, method, problem, [problem.theta], lr=0.2, steps=1000)
    theta, strengths = problem.resilient_solution(1.0)
    torch.testing.assert_close(problem.theta.detach(), theta, rtol=0, atol=1e-6)
    torch.testing.assert_close(gammas(relaxation).detach(), strengths, rtol=0, atol=1e-6)
    torch.testing.assert_close(method.slacks, method.multipliers, rtol=0, atol=1e-6)


def test_data_with_the_whole_symmetry_pay_nothing() -> None:
    """A minimum at gamma = 0: slack and multiplier vanish, and nothing names a layer."""
    relaxation = chain(2)
    method = er.ResilientACE(relaxation, dual_lr=0.1, primal_lr=0.1)
    descend(relaxation, method, lambda g: g.square().sum(), [], lr=0.1, steps=1500)
    assert float(gammas(relaxation).detach().abs().max()) < 1e-2
    assert float(method.slacks.abs().max()) < 1e-2
    assert float(method.multipliers.max()) < 1e-2
    assert (method.multipliers >= 0).all()


def test_a_slack_moves_by_the_multiplier_of_the_same_moment_and_once() -> None:
    """Not |gamma| - 2u, not the multiplier after its own step (papers' released code)."""
    relaxation = chain(1)
    method = er.ResilientACE(relaxation, dual_lr=0.5, primal_lr=0.1, rho=2.0)
    method.multipliers.fill_(0.3)
    method.slacks.fill_(0.2)
    descend(relaxation, method, lambda g: 0.0 * g.sum(), [], lr=0.1, steps=1)
    assert float(method.slacks) == pytest.approx(0.2 - 0.1 * (2.0 * 0.2 - 0.3), abs=1e-12)
    assert float(method.multipliers) == pytest.approx(0.3 + 0.5 * (1.0 - 0.2), abs=1e-12)
