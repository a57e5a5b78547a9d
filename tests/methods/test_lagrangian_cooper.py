"""Step-by-step agreement with the library Cooper (simultaneous gradient descent-ascent)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from method_toys import Quadratic, chain, gamma_parameters, gammas
from torch import Tensor, nn

import equirelax as er
from equirelax.methods import Method

cooper = pytest.importorskip("cooper")

LR, STEPS = 0.1, 120


class Reference(cooper.ConstrainedMinimizationProblem):
    """The same problem for Cooper: gamma = 0, or |gamma| <= u with the slack u a primal variable."""

    def __init__(
        self, task: Quadratic, count: int, *, rho: float | None = None, augmented: float = 0.0
    ) -> None:
        super().__init__()
        self.task, self.rho = task, rho
        self.gamma = nn.Parameter(torch.ones(count, dtype=torch.float64))
        self.slack = nn.Parameter(torch.zeros(count, dtype=torch.float64))
        kind = cooper.ConstraintType.EQUALITY if rho is None else cooper.ConstraintType.INEQUALITY
        settings = {}
        if augmented:
            coefficient = cooper.penalty_coefficients.DensePenaltyCoefficient(
                torch.tensor(augmented, dtype=torch.float64)
            )
            settings = {
                "formulation_type": cooper.formulations.AugmentedLagrangian,
                "penalty_coefficient": coefficient,
            }
        multiplier = cooper.multipliers.DenseMultiplier(num_constraints=count, dtype=torch.float64)
        self.constraint = cooper.Constraint(constraint_type=kind, multiplier=multiplier, **settings)

    def compute_cmp_state(self) -> object:
        loss, violation = self.task(self.gamma), self.gamma
        if self.rho is not None:
            loss = loss + 0.5 * self.rho * self.slack.square().sum()
            violation = self.gamma.abs() - self.slack
        state = cooper.ConstraintState(violation=violation)
        return cooper.CMPState(loss=loss, observed_constraints={self.constraint: state})

    def run(self, dual: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> list[tuple[Tensor, ...]]:
        """(theta, gamma, slack, multiplier) after every step."""
        primal = [self.task.theta, self.gamma] + ([] if self.rho is None else [self.slack])
        optimizer = cooper.optim.SimultaneousOptimizer(
            cmp=self,
            primal_optimizers=torch.optim.SGD(primal, lr=LR),
            dual_optimizers=dual(list(self.dual_parameters())),
        )
        rows = []
        for _ in range(STEPS):
            optimizer.roll()
            now = (self.task.theta, self.gamma, self.slack, self.constraint.multiplier.weight)
            rows.append(tuple(t.detach().clone() for t in now))
        return rows


def ours(method: Method, task: Quadratic) -> list[tuple[Tensor, ...]]:
    relaxation = method.relaxation
    optimizer = torch.optim.SGD([task.theta, *gamma_parameters(relaxation)], lr=LR)
    rows = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        (task(gammas(relaxation)) + method.penalty()).backward()
        optimizer.step()
        method.step()
        slack = getattr(method, "slacks", torch.zeros(len(relaxation), dtype=torch.float64))
        now = (task.theta, gammas(relaxation), slack, method.base_multipliers())
        rows.append(tuple(t.detach().clone() for t in now))
    return rows


def assert_same(ours_: list[tuple[Tensor, ...]], reference: list[tuple[Tensor, ...]]) -> None:
    for step, (mine, theirs) in enumerate(zip(ours_, reference, strict=True)):
        for name, a, b in zip(("theta", "gamma", "slack", "multiplier"), mine, theirs, strict=True):
            torch.testing.assert_close(
                a, b, rtol=1e-12, atol=1e-12, msg=lambda m, s=step, n=name: f"step {s}, {n}: {m}"
            )


def sgd(lr: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, maximize=True)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dual_lr", [0.05, 1.5])  # 1.5: far above the curvature, where it circles
@pytest.mark.parametrize("augmented", [0.0, 0.8])
def test_ace_agrees_step_by_step(count: int, dual_lr: float, augmented: float) -> None:
    method = er.ACE(chain(count), dual_lr=dual_lr, augmented=augmented)
    reference = Reference(Quadratic(count, seed=count), count, augmented=augmented).run(sgd(dual_lr))
    assert_same(ours(method, Quadratic(count, seed=count)), reference)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dual_lr", [0.05, 0.8])
@pytest.mark.parametrize("rho", [1.0, 0.4])
@pytest.mark.parametrize("augmented", [0.0, 0.8])
def test_resilient_agrees_step_by_step(count: int, dual_lr: float, rho: float, augmented: float) -> None:
    method = er.ResilientACE(chain(count), dual_lr=dual_lr, primal_lr=LR, rho=rho, augmented=augmented)
    reference = Reference(Quadratic(count, seed=count), count, rho=rho, augmented=augmented).run(sgd(dual_lr))
    assert_same(ours(method, Quadratic(count, seed=count)), reference)


def test_ace_with_adam_agrees_step_by_step() -> None:
    method = er.ACE(chain(3), dual_lr=0.02, dual_optimizer="adam", dual_eps=1e-4)
    reference = Reference(Quadratic(3), 3).run(
        lambda parameters: torch.optim.Adam(parameters, lr=0.02, eps=1e-4, maximize=True)
    )
    assert_same(ours(method, Quadratic(3)), reference)


def test_pi_agrees_with_coopers_nupi() -> None:
    dual_lr, kappa = 0.3, 0.6

    def nupi(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return cooper.optim.nuPI(
            parameters,
            lr=1.0,
            Kp=torch.tensor([kappa]),
            Ki=torch.tensor([dual_lr]),
            ema_nu=0.0,
            init_type=cooper.optim.nuPIInitType.ZEROS,
            maximize=True,
        )

    method = er.ACE(chain(3), dual_lr=dual_lr, pi=kappa)
    # Cooper's gains are float32 tensors: 0.3 and 0.6 are rounded there.
    rows, reference = ours(method, Quadratic(3)), Reference(Quadratic(3), 3).run(nupi)
    for mine, theirs in zip(rows, reference, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
