"""ACE's two algorithms reach what they should; the plain form circles where it should not be used."""

from __future__ import annotations

import math

import pytest
import torch
from method_toys import Quadratic, chain, descend, gamma_parameters, gammas
from torch import Tensor

import equirelax as er

FORMS = {
    "plain": {},
    "augmented": {"augmented": 2.0},
    "pi": {"pi": 1.0},
    "both": {"augmented": 1.0, "pi": 1.0},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("optimizer", "steps"), [("sgd", 700), pytest.param("adam", 1500, marks=pytest.mark.slow)]
)
def test_ace_solves_a_strongly_convex_problem(form: str, optimizer: str, steps: int) -> None:
    relaxation = chain(2)
    problem = Quadratic(2)
    dual_lr = 0.1 if optimizer == "sgd" else 0.02
    method = er.ACE(relaxation, dual_lr=dual_lr, dual_optimizer=optimizer, dual_eps=0.1, **FORMS[form])
    descend(relaxation, method, problem, [problem.theta], lr=0.2, steps=steps)
    theta, multipliers = problem.equality_solution()
    torch.testing.assert_close(problem.theta.detach(), theta, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        gammas(relaxation).detach(), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(method.multipliers, multipliers, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rho", "steps"), [(1.0, 500), pytest.param(0.3, 1500, marks=pytest.mark.slow)])
def test_resilient_solves_a_strongly_convex_problem(form: str, rho: float, steps: int) -> None:
    relaxation = chain(2)
    problem = Quadratic(2)
    method = er.ResilientACE(relaxation, dual_lr=0.1, primal_lr=0.2, rho=rho, **FORMS[form])
    descend(relaxation, method, problem, [problem.theta], lr=0.2, steps=steps)
    theta, strengths = problem.resilient_solution(rho)
    assert strengths.abs().min() > 0.05
    torch.testing.assert_close(problem.theta.detach(), theta, rtol=0, atol=1e-6)
    torch.testing.assert_close(gammas(relaxation).detach(), strengths, rtol=0, atol=1e-6)
    torch.testing.assert_close(method.slacks, strengths.abs(), rtol=0, atol=1e-6)
    torch.testing.assert_close(method.multipliers, rho * method.slacks, rtol=0, atol=1e-6)


SLOPE = torch.tensor([0.7, -0.4], dtype=torch.float64)


def linear_task(strengths: Tensor) -> Tensor:
    """J0 = a^T gamma."""
    return SLOPE @ strengths


def test_the_plain_form_diverges_on_the_linear_problem_by_the_known_factor() -> None:
    # eta_d gamma^2 + eta_p (lambda + a)^2 is multiplied by 1 + eta_p eta_d in every step.
    lr, dual_lr, steps = 0.1, 0.2, 400
    relaxation = chain(2)
    method = er.ACE(relaxation, dual_lr=dual_lr)
    seen = torch.stack(descend(relaxation, method, linear_task, [], lr=lr, steps=steps))
    energy = dual_lr * gammas(relaxation).detach() ** 2 + lr * (method.multipliers + SLOPE) ** 2
    start = dual_lr * 1.0 + lr * SLOPE**2
    torch.testing.assert_close(energy, start * (1.0 + lr * dual_lr) ** steps, rtol=1e-9, atol=0)
    # It circles: half a turn every pi / sqrt(lr dual_lr) steps.
    turns = (seen[1:].sign() != seen[:-1].sign()).sum(0)
    assert (turns >= steps * math.sqrt(lr * dual_lr) / math.pi - 2).all()


@pytest.mark.parametrize("form", ["augmented", pytest.param("pi", marks=pytest.mark.slow)])
def test_the_damped_forms_solve_the_linear_problem(form: str) -> None:
    relaxation = chain(2)
    method = er.ACE(relaxation, dual_lr=0.2, **FORMS[form])
    descend(relaxation, method, linear_task, [], lr=0.1, steps=2000)
    torch.testing.assert_close(
        gammas(relaxation).detach(), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(method.multipliers, -SLOPE, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "stable"),
    [
        ({"augmented": 0.22}, True),
        ({"augmented": 0.18}, False),
        pytest.param({"pi": 0.22}, True, marks=pytest.mark.slow),  # 0.22 (1 - 0.1 * 0.22) = 0.2152 > 0.2
        pytest.param({"pi": 0.20}, False, marks=pytest.mark.slow),
        ({"pi": 9.7}, True),
        ({"pi": 9.9}, False),  # 9.9 (1 - 0.99) = 0.099 < 0.2
    ],
)
def test_the_stated_limits_of_stability(settings: dict[str, float], stable: bool) -> None:
    relaxation = chain(2)
    method = er.ACE(relaxation, dual_lr=0.2, **settings)
    seen = torch.stack(descend(relaxation, method, linear_task, [], lr=0.1, steps=2000)).abs()
    early, late = seen[:200].max(), seen[-200:].max()
    assert bool(late < 0.5 * early) is stable
    assert bool(late > early) is not stable


@pytest.mark.parametrize(
    ("form", "dual_lr"),
    [("plain", 0.05), *(pytest.param(form, 0.2, marks=pytest.mark.slow) for form in ("augmented", "pi"))],
)
def test_resilient_solves_the_linear_problem(form: str, dual_lr: float) -> None:
    # min a gamma + rho/2 gamma^2: gamma = -a / rho; the price of the slack supplies the curvature.
    relaxation = chain(2)
    method = er.ResilientACE(relaxation, dual_lr=dual_lr, primal_lr=0.1, rho=0.5, **FORMS[form])
    descend(relaxation, method, linear_task, [], lr=0.1, steps=2500)
    torch.testing.assert_close(gammas(relaxation).detach(), -SLOPE / 0.5, rtol=0, atol=1e-6)
    torch.testing.assert_close(method.multipliers, SLOPE.abs(), rtol=0, atol=1e-6)


def test_the_plain_resilient_form_circles_above_a_quarter_of_rho() -> None:
    relaxation = chain(2)
    method = er.ResilientACE(relaxation, dual_lr=0.2, primal_lr=0.1, rho=0.5)
    seen = torch.stack(descend(relaxation, method, linear_task, [], lr=0.1, steps=1500))
    assert (seen[-500:].std(0) > 0.05).all()  # does not settle


def test_gammas_gradient_is_the_effective_multiplier() -> None:
    for kind, settings in ((er.ACE, {}), (er.ResilientACE, {"primal_lr": 0.1})):
        relaxation = chain(2)
        method = kind(relaxation, dual_lr=0.3, augmented=0.5, pi=0.2, **settings)
        descend(relaxation, method, lambda g: (g - 0.4).square().sum(), [], lr=0.1, steps=5)
        gradients = torch.autograd.grad(method.penalty(), gamma_parameters(relaxation))
        sign = gammas(relaxation).detach().sign() if kind is er.ResilientACE else 1.0
        torch.testing.assert_close(torch.cat(gradients), sign * method.effective_multipliers().detach())


def test_the_subgradient_of_the_absolute_value_is_zero_at_zero() -> None:
    relaxation = chain(2)
    method = er.ResilientACE(relaxation, dual_lr=0.1, primal_lr=0.1, initial=0.0)
    method.multipliers.fill_(3.0)
    gradients = torch.autograd.grad(method.penalty(), [r.gamma for _, r in relaxation])
    assert [float(g) for g in gradients] == [0.0, 0.0]


def test_mean_reduction_divides_the_term_and_not_the_multipliers_step() -> None:
    relaxation = chain(3)
    method = er.ACE(relaxation, dual_lr=0.1, reduction="mean")
    method.multipliers.copy_(torch.tensor([1.0, 2.0, 6.0]))
    gradients = torch.autograd.grad(method.penalty(), [r.gamma for _, r in relaxation])
    torch.testing.assert_close(torch.cat(gradients), torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64) / 3)
