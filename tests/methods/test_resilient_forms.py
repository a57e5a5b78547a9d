"""What ACE's released code does in the place of Algorithm 2, against the formulas written out number by number."""

from __future__ import annotations

import math

import pytest
import torch

import equirelax as er
from equirelax.errors import MethodError

STEPS, LR, DUAL_LR, RHO = 12, 0.05, 0.1, 1.5


class TwoMaps(torch.nn.Module):
    """Two vector-neuron maps one after the other: two residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def relaxed() -> tuple[torch.nn.Module, er.relaxation.Relaxation]:
    torch.manual_seed(0)
    model = TwoMaps().double()
    space = er.symmetry.vector(er.symmetry.SO(2))
    declared = (er.relaxation.Linear("*", space, space),)
    return model, er.relax(model, er.Layers(declare=declared, residual=er.Dense(init="normal", std=0.3)))


class Adam:
    """Adam by the book, of one number."""

    def __init__(self, value: float, lr: float) -> None:
        self.value, self.lr, self.m, self.v, self.t = value, lr, 0.0, 0.0, 0

    def step(self, gradient: float) -> None:
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        self.value -= (
            self.lr * (self.m / (1 - 0.9**self.t)) / (math.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)
        )


def run(form: str, steps: int = STEPS, state: dict | None = None):
    """gammas, multipliers, slacks after every step of SGD on gamma alone, the task's gradient in gamma being 0.3 and -0.2."""
    _, relaxation = relaxed()
    method = er.ResilientACE(
        relaxation, dual_lr=DUAL_LR, primal_lr=LR, rho=RHO, form=form, dual_optimizer="adam"
    )
    gammas = [residual.gamma for residual in relaxation.residuals.values()]
    optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=LR)
    history = []
    if state is not None:
        method.load_state_dict(state)
    for _ in range(steps):
        # every weight has a gradient of 0, so that the watch sees the optimiser work
        task = 0.3 * gammas[0].sum() - 0.2 * gammas[1].sum()
        task = task + 0.0 * sum(p.sum() for p in relaxation.model.parameters())
        optimizer.zero_grad()
        (task + method.penalty()).backward()
        optimizer.step()
        method.step()
        history.append((relaxation.gammas().tolist(), method.multipliers.tolist(), method.slacks.tolist()))
    return history, method.state_dict()


def released() -> list:
    """Loss J0 + (rho + 1) u^2 - lambda u + (lambda - u) |gamma|, dual gradient |gamma| - 2 u, u by Adam."""
    history = []
    gamma, slope = [1.0, 1.0], [0.3, -0.2]
    dual = [Adam(0.0, DUAL_LR), Adam(0.0, DUAL_LR)]
    slack = [Adam(0.0, LR), Adam(0.0, LR)]
    for _ in range(STEPS):
        for i in range(2):
            g, lam, u = gamma[i], dual[i].value, slack[i].value
            gamma[i] = g - LR * (slope[i] + (lam - u) * math.copysign(1.0, g))
            slack[i].step(2 * (RHO + 1) * u - lam - abs(g))
            dual[i].step(-(abs(g) - 2 * u))
            dual[i].value = max(dual[i].value, 0.0)
        history.append((list(gamma), [d.value for d in dual], [s.value for s in slack]))
    return history


def clamped() -> list:
    """Algorithm 1 with multipliers at 0 or above."""
    history = []
    gamma, slope, dual = [1.0, 1.0], [0.3, -0.2], [Adam(0.0, DUAL_LR), Adam(0.0, DUAL_LR)]
    for _ in range(STEPS):
        for i in range(2):
            g, lam = gamma[i], dual[i].value
            gamma[i] = g - LR * (slope[i] + lam)
            dual[i].step(-g)
            dual[i].value = max(dual[i].value, 0.0)
        history.append((list(gamma), [d.value for d in dual], [0.0, 0.0]))
    return history


@pytest.mark.parametrize(("form", "expected"), [("released", released), ("clamped", clamped)])
def test_the_forms_are_those_of_the_released_code(form: str, expected) -> None:
    history, _ = run(form)
    for found, wanted in zip(history, expected(), strict=True):
        for one, other in zip(found, wanted, strict=True):
            assert one == pytest.approx(other, rel=1e-9, abs=1e-12)


def test_a_released_run_goes_on_from_its_state() -> None:
    whole, _ = run("released")
    _, state = run("released", STEPS // 2)
    rest, _ = run("released", STEPS - STEPS // 2, state)
    assert rest[-1][1:] == whole[-1][1:]


def test_unknown_forms_and_options_they_do_not_have_are_refused() -> None:
    _, relaxation = relaxed()
    with pytest.raises(MethodError, match="released"):
        er.ResilientACE(relaxation, dual_lr=0.1, primal_lr=0.1, form="relased")
    with pytest.raises(MethodError, match="augmented"):
        er.ResilientACE(relaxation, dual_lr=0.1, primal_lr=0.1, form="clamped", augmented=1.0)
