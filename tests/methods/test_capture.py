"""What a CUDA graph of the loss needs of a method: tensors that keep their memory, and a step after a replay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_toys import chain
from torch import Tensor, nn

import equirelax as er
from equirelax.methods import Method
from equirelax.relaxation.regularizers import FiniteRotation, LieDerivative
from equirelax.symmetry import SO, vector

STEPS = 5
METHODS: dict[str, dict[str, Any]] = {
    "strict": {},
    "rpp": {},
    "scheduled": {"total_steps": STEPS},
    "ace": {"dual_lr": 0.1, "pi": 0.5, "augmented": 0.3, "dual_optimizer": "adam"},
    "resilient": {"dual_lr": 0.1, "primal_lr": 0.01},
    "swing": {"period": STEPS},
}


class Net(nn.Module):
    """One equivariant layer on two vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def made(name: str) -> tuple[nn.Module, Method, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net().double()
    reps = (2 * vector(SO(3)), vector(SO(3)))
    declared = er.Layers(residual=er.Dense(init="default"), declare=(er.relaxation.Linear("layer", *reps),))
    relaxation = er.relax(model, declared)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    method = er.methods.get(name)(relaxation, **METHODS[name]).attach(optimizer)
    return model, method, optimizer


def places(model: nn.Module, method: Method) -> dict[str, int]:
    """Where everything is that the loss reads."""
    own = {key: value for key, value in vars(method).items() if isinstance(value, Tensor)}
    return {key: value.data_ptr() for key, value in {**dict(model.named_parameters()), **own}.items()}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_after_a_replay_is_a_step(name: str) -> None:
    """A replay leaves no trace in Python: `replayed` does what is missing, and nothing moves in memory."""
    model, method, optimizer = made(name)
    twin, other, second = made(name)
    assert method.capture_obstacle() == ""
    before = places(model, method)
    for step in range(STEPS):
        x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for network, drives, trains in ((model, method, optimizer), (twin, other, second)):
            loss = network(x).square().mean() + drives.penalty()
            trains.zero_grad()
            loss.backward()
        other._begun = False
        for key in ("_seen", "_force"):
            if hasattr(other, key):
                setattr(other, key, None)
        for _, residual in other.relaxation:
            residual.called = False
        other.replayed()
        optimizer.step()
        second.step()
        assert places(model, method) == before
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert method.logs() == other.logs()


def test_what_differs_from_step_to_step_is_named() -> None:
    torch.manual_seed(0)
    model, _, _ = made("strict")
    relaxation = er.relaxation_of(model)
    named: dict[str, Method] = {
        "every": er.Scheduled(relaxation, STEPS, every=2),
        "rows": er.Scheduled(relaxation, STEPS, rows=2),
        "penalty_times_gamma": er.Scheduled(relaxation, STEPS, penalty_times_gamma=True),
        "scaling": er.ACE(relaxation, dual_lr=0.1, regularizer=LieDerivative(relaxation, scaling="mean")),
        "planes": er.ACE(relaxation, dual_lr=0.1, regularizer=FiniteRotation(relaxation, weight=0.1)),
        "at random": er.methods.get("remul")(relaxation),
    }
    for word, method in named.items():
        assert word in method.capture_obstacle(), word


def test_a_method_that_was_replaced_is_not_replayed() -> None:
    model, method, optimizer = made("ace")
    er.ACE(er.relaxation_of(model), dual_lr=0.1).attach(optimizer)
    with pytest.raises(er.errors.MethodError, match="took over"):
        method.replayed()


def test_a_replayed_step_counts_after_one_that_was_left_out() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.0)
    method = er.Swing(relaxation, period=8).attach(optimizer)
    method.skip()
    method.replayed()
    optimizer.step()
    assert method.steps == 1
