"""The projected network's loss beside the relaxed one's: the rule, the warning, and the training that it leaves alone."""

from __future__ import annotations

import functools
import io
import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import EquirelaxWarning, MethodError
from equirelax.methods import ProjectedLoss, lags
from equirelax.symmetry import SO, vector

STEPS = 30


class Noisy(nn.Module):
    """A relaxed layer between batch norm and dropout: it changes its buffers and draws at random when it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer, self.drop = nn.BatchNorm1d(6), nn.Linear(6, 6, bias=False), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.layer(self.norm(x)))
        return y


def relaxed(seed: int = 0) -> er.relaxation.Relaxation:
    torch.manual_seed(seed)
    rep = 2 * vector(SO(3))
    return er.relax(
        Noisy(), er.Layers(residual=er.Dense(init="default"), declare=(er.Linear("layer", rep, rep),))
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(2, 8, 6, generator=generator)
    return x, y


def trained(
    every: int | None, scheduled: bool = False
) -> tuple[er.relaxation.Relaxation, list[tuple[float, float]]]:
    """Train, with or without a watch; what it measured."""
    relaxation = relaxed()
    model = relaxation.model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    method = er.Scheduled(relaxation, STEPS, rows=3) if scheduled else er.ACE(relaxation, dual_lr=1e-2)
    method.attach(optimizer)
    watch = None if every is None else ProjectedLoss(relaxation, every=every)
    found = []
    for step in range(STEPS):
        x, y = batch(step)

        def task(x: Tensor = x, y: Tensor = y) -> Tensor:
            return (model(x) - y).square().mean()

        loss = task()
        if watch is not None and scheduled and watch(loss, task):  # before the penalty and the backward pass
            found.append((watch.projected, watch.relaxed))
        optimizer.zero_grad()
        (loss + method.penalty()).backward()
        if watch is not None and not scheduled and watch(loss, task):
            found.append((watch.projected, watch.relaxed))
        optimizer.step()
    return relaxation, found


@pytest.mark.parametrize("scheduled", [False, True])
def test_training_is_the_same_to_the_bit(scheduled: bool) -> None:
    """Weights, strengths, buffers and random numbers; also where the penalty reads what the residuals have kept."""
    plain, _ = trained(None, scheduled)
    after = torch.rand(3)
    watched, found = trained(3, scheduled)
    assert torch.equal(torch.rand(3), after)
    assert len(found) == STEPS // 3
    assert all(projected != relaxed_ for projected, relaxed_ in found[1:])
    state, expected = watched.model.state_dict(), plain.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert watched.model.training


def test_it_may_be_called_before_the_backward_pass() -> None:
    relaxation = relaxed()
    x, y = batch(0)

    def task() -> Tensor:
        return (relaxation.model(x) - y).square().mean()

    loss = task()
    before = {name: id(buffer) for name, buffer in relaxation.model.named_buffers()}
    assert ProjectedLoss(relaxation)(loss, task)
    loss.backward()
    assert {name: id(buffer) for name, buffer in relaxation.model.named_buffers()} == before


def test_it_measures_the_projected_network_on_the_same_batch() -> None:
    relaxation = relaxed()
    relaxation.set_gamma(0.7)
    relaxation.model.eval()  # no dropout, so that two calls can be compared
    x, y = batch(0)

    def task() -> Tensor:
        return (relaxation.model(x) - y).square().mean()

    watch = ProjectedLoss(relaxation)
    assert watch.scalars() == {}
    watch(task(), task)
    with_residuals = float(task().detach())
    er.project(relaxation.model)
    assert watch.scalars() == pytest.approx(
        {"projected": float(task().detach()), "relaxed": with_residuals}, rel=1e-6
    )
    assert watch.projected != watch.relaxed


class Forces(nn.Module):
    """Forces (batch, 6) from an energy, computed in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.layer(x).square().sum(), x, create_graph=self.training)
        return -slope


def test_a_network_that_derives_forces_from_an_energy_is_measured() -> None:
    torch.manual_seed(0)
    rep = 2 * vector(SO(3))
    model = Forces()
    relaxation = er.relax(
        model, er.Layers(residual=er.Dense(init="default"), declare=(er.Linear("layer", rep, rep),))
    )
    relaxation.set_gamma(0.7)
    x, y = batch(0)
    watch = ProjectedLoss(relaxation)
    watch(torch.tensor(1.0), lambda: (model(x) - y).square().mean())
    assert all(p.grad is None for p in model.parameters())
    er.project(model)
    assert watch.projected == pytest.approx(float((model(x) - y).square().mean().detach()), rel=1e-6)


def test_no_graph_of_the_parameters_is_built() -> None:
    """Its memory would come on top of that of a graph whose backward pass is still to come."""
    relaxation = relaxed()
    graphs = []

    def loss() -> Tensor:
        found = relaxation.model(batch(0)[0]).square().mean()
        graphs.append(found.grad_fn)
        return found

    before = [p.requires_grad for p in relaxation.model.parameters()]
    ProjectedLoss(relaxation)(torch.tensor(1.0), loss)
    assert graphs == [None]
    assert [p.requires_grad for p in relaxation.model.parameters()] == before


def test_an_error_in_the_loss_leaves_everything_as_it_was() -> None:
    relaxation = relaxed()
    before = {name: buffer.clone() for name, buffer in relaxation.model.named_buffers()}

    def broken() -> Tensor:
        relaxation.model(batch(0)[0])
        raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"):
        ProjectedLoss(relaxation)(torch.tensor(1.0), broken)
    assert all(torch.equal(buffer, before[name]) for name, buffer in relaxation.model.named_buffers())
    assert all(residual.suspended == 0 for _, residual in relaxation)


FALLING = [2.0 - 0.1 * k for k in range(12)]


@pytest.mark.parametrize(
    ("projected", "relaxed_", "expected"),
    [
        ([1.0] * 12, [0.4] * 12, True),
        ([1.0] * 12, [0.6] * 12, False),  # half of the fit is the strict weights'
        (FALLING, [0.1] * 12, False),  # it still falls
        ([1.0] * 11, [0.1] * 11, False),  # too few to tell
        ([9.0] * 5 + [1.0] * 12, [9.0] * 5 + [0.4] * 12, True),  # the last twelve count
        ([1.0] * 12, [0.1] * 6 + [1.0] * 6, False),  # gamma has come back to 0
        ([1.0] * 6 + [3.0] * 6, [0.1] * 12, True),  # it grows
    ],
)
def test_the_rule(projected: list[float], relaxed_: list[float], expected: bool) -> None:
    assert lags(projected, relaxed_) is expected


def fed(watch: ProjectedLoss, pairs: Any) -> list[bool]:
    """Whether it lags after each measurement."""
    found = []
    for projected, relaxed_ in pairs:
        watch(torch.tensor(relaxed_), lambda value=projected: torch.tensor(value))
        found.append(watch.lagging)
    return found


def test_it_warns_once() -> None:
    watch = ProjectedLoss(relaxed(), every=1)
    with pytest.warns(EquirelaxWarning, match="projected network lags") as caught:
        assert fed(watch, [(1.0, 0.1)] * 20) == [False] * 11 + [True] * 9
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fed(watch, [(1.0, 1.0)] * 12)
        assert not watch.lagging


def test_it_goes_on_from_its_state() -> None:
    pairs = [(1.0, 0.1 + 0.01 * k) for k in range(20)]
    whole, half = ProjectedLoss(relaxed(), every=2), ProjectedLoss(relaxed(), every=2)
    doubled = list(itertools.chain.from_iterable(zip(pairs, pairs, strict=True)))
    with pytest.warns(EquirelaxWarning):
        expected = fed(whole, doubled)
    begun = fed(half, doubled[:15])
    buffer = io.BytesIO()
    torch.save(half.state_dict(), buffer)
    buffer.seek(0)
    resumed = ProjectedLoss(relaxed(), every=2)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert resumed.scalars() == half.scalars()
    with pytest.warns(EquirelaxWarning):
        assert begun + fed(resumed, doubled[15:]) == expected
    assert resumed.state_dict() == whole.state_dict()


def test_losses_that_are_not_finite_do_not_count() -> None:
    watch = ProjectedLoss(relaxed(), every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fed(watch, [(1.0, 0.1)] * 11 + [(math.inf, 0.1), (1.0, math.nan)])
    assert not watch.lagging


@pytest.mark.parametrize("wrong", [0, math.nan, "10"])
def test_what_it_is_given_is_checked(wrong: Any) -> None:
    with pytest.raises(MethodError, match="every"):
        ProjectedLoss(relaxed(), every=wrong)
    with pytest.raises(MethodError, match="relaxation"):
        ProjectedLoss(Noisy())  # type: ignore[arg-type]


def test_losses_that_are_no_scalars_are_refused() -> None:
    watch, one = ProjectedLoss(relaxed(), every=1), torch.tensor(1.0)
    for wrong in (None, one):
        with pytest.raises(MethodError, match="function"):
            watch(one, wrong)  # type: ignore[arg-type]
    for before, again in ((torch.ones(3), one), (one, torch.ones(3)), (1.0, one)):
        with pytest.raises(MethodError, match="scalar"):
            watch(before, functools.partial(torch.clone, again))  # type: ignore[arg-type]
