"""Swing: the course of gamma, its end, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from method_toys import batch, chain, gammas

import equirelax as er
from equirelax.errors import MethodError
from equirelax.methods import Swing


def course(steps: int, **settings: object) -> list[list[float]]:
    """The strengths of both residuals before every optimizer step."""
    relaxation = chain(2)
    optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=1e-3)
    method = Swing(relaxation, **settings).attach(optimizer)
    x, y = batch()
    found = []
    for _ in range(steps):
        found.append(gammas(relaxation).tolist())
        loss = (relaxation.model(x) - y).square().mean() + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def test_gamma_is_the_cosine_of_the_step_the_same_for_every_residual() -> None:
    found = course(9, amplitude=0.5, period=8)
    half = 0.5 * math.sqrt(0.5)
    expected = [0.5, half, 0.0, -half, -0.5, -half, 0.0, half, 0.5]
    for strengths, value in zip(found, expected, strict=True):
        assert strengths == pytest.approx([value, value], abs=1e-12)


def test_the_phase_shifts_the_course() -> None:
    ahead = course(6, period=8, phase=0.75)
    assert ahead[0] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert ahead[1][0] > 0.1
    late = course(8, period=8)
    assert ahead[2] == pytest.approx(late[0], abs=1e-12)
    assert ahead[5] == pytest.approx(late[3], abs=1e-12)


def test_after_the_finish_gamma_is_exactly_0_and_only_the_strict_weights_train() -> None:
    """At a zero of the course it stops without a jump."""
    found = course(12, amplitude=0.4, period=8, finish=6)
    assert found[6:] == [[0.0, 0.0]] * 6
    assert abs(found[5][0]) > 0.1
    relaxation = chain(2)
    method = Swing(relaxation, period=8, finish=0).attach(
        torch.optim.SGD(relaxation.model.parameters(), lr=0.1)
    )
    x, y = batch()
    ((relaxation.model(x) - y).square().mean() + method.penalty()).backward()
    residual = [p.grad for p in relaxation.residual_parameters().values()]
    assert all(gradient is None or not bool(gradient.any()) for gradient in residual)
    assert all(bool(p.grad.any()) for p in relaxation.strict_parameters().values() if p.grad is not None)


def test_a_learnt_gamma_is_fixed() -> None:
    relaxation = chain(2)
    er.ACE(relaxation, dual_lr=0.1)
    Swing(relaxation, period=4)
    assert not relaxation.gamma_parameters()


def strict_weight(period: int, steps: int) -> list[float]:
    """The course of w under gradient descent on (w + gamma v - 1)^2 / 2 from w = v = 0."""
    method = Swing(chain(1), amplitude=0.4, period=period)
    w = v = 0.0
    found = []
    for step in range(steps):
        gamma = method.gamma_at(step)
        error = w + gamma * v - 1.0
        w, v = w - 0.05 * error, v - 0.05 * gamma * error
        found.append(w)
    return found


def test_what_a_swing_leaves_to_the_strict_weight_in_the_smallest_network() -> None:
    """docs/explanation/mathematics.md: fast, w converges to the target; slow, it swings around it; constant, it stays short."""
    assert strict_weight(period=20, steps=4000)[-1] == pytest.approx(1.0, abs=1e-9)
    slow = strict_weight(period=4000, steps=9000)[-4000:]
    assert max(slow) - min(slow) > 0.2
    assert sum(slow) / len(slow) == pytest.approx(1.0, abs=1e-3)
    constant = strict_weight(period=10**9, steps=4000)[-1]
    assert constant == pytest.approx(1.0 / (1.0 + 0.4**2), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, "period"),
        ({"period": 0}, "period"),
        ({"period": 10, "finish": -1}, "finish"),
        ({"period": 10, "amplitude": math.inf}, "amplitude"),
        ({"period": 10, "phase": "0"}, "phase"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], key: str) -> None:
    with pytest.raises(MethodError, match=key):
        Swing(chain(1), **settings)
