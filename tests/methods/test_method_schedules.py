"""Schedules and the scheduled method."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_toys import batch, chain

import equirelax as er
from equirelax.errors import EquirelaxWarning, MethodError
from equirelax.methods.schedules import SCHEDULES, resolve
from equirelax.settings import documentation, range_of, types_of


def strengths(method: er.Scheduled) -> list[float]:
    return [method.gamma_at(step) for step in range(method.total_steps)]


def scheduled(total_steps: int, schedule: object = "triangle", **settings: object) -> er.Scheduled:
    return er.Scheduled(chain(2), total_steps, schedule=schedule, lie_weight=0.0, norm_weight=0.0, **settings)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Scheduled")
@settings(deadline=None, max_examples=25)
@given(st.integers(2, 400))
def test_triangle_is_zero_at_the_first_and_exactly_zero_at_the_last_step(total: int) -> None:
    values = strengths(scheduled(total))
    assert values[0] == 0.0
    assert values[-1] == 0.0
    assert all(0.0 <= v <= 1.0 for v in values)
    if total > 2:
        assert max(values) >= 1.0 - 1.0 / (total - 1) - 1e-12
    if total % 2:
        assert values[total // 2] == 1.0
    assert values == pytest.approx(
        [min(2 * t, 2 * (total - 1 - t)) / (total - 1) for t in range(total)], abs=1e-12
    )


@pytest.mark.filterwarnings("ignore:Scheduled")
@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.integers(1, 7), st.integers(0, 6))
def test_triangle_per_epoch_is_constant_within_epochs_and_zero_in_the_last(
    epochs: int, per_epoch: int, missing: int
) -> None:
    total = epochs * per_epoch - min(missing, per_epoch - 1)  # the last epoch may be cut short
    values = strengths(scheduled(total, steps_per_epoch=per_epoch))
    for epoch in range(epochs):
        within = values[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert len(set(within)) == 1
        assert within[0] == pytest.approx(2 * min(epoch, epochs - 1 - epoch) / (epochs - 1), abs=1e-12)
    assert set(values[:per_epoch]) == {0.0}
    assert set(values[(epochs - 1) * per_epoch :]) == {0.0}
    if epochs % 2:
        assert values[(epochs // 2) * per_epoch] == 1.0


def test_one_step_and_one_epoch() -> None:
    with pytest.warns(EquirelaxWarning, match="strict network"):
        assert strengths(scheduled(1)) == [0.0]
    with pytest.warns(EquirelaxWarning, match="gamma = 1"):
        assert strengths(scheduled(3, "linear", steps_per_epoch=3)) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["linear", "cosine", "hold-then-decay"])
def test_one_step_at_full_strength_is_said(name: str) -> None:
    with pytest.warns(EquirelaxWarning, match="gamma = 1"):
        scheduled(1, name)


def test_a_triangle_of_two_steps_is_said_to_relax_nothing() -> None:
    with pytest.warns(EquirelaxWarning, match="strict network"):
        scheduled(2)
    with pytest.warns(EquirelaxWarning, match="steps_per_epoch"):
        scheduled(20, steps_per_epoch=10)


@pytest.mark.filterwarnings("error")
def test_other_short_trainings_are_silent() -> None:
    scheduled(3)
    scheduled(2, "linear")
    for steps in (1, 2):
        scheduled(steps, "constant")
        scheduled(steps, lambda p: 0.0)


@pytest.mark.filterwarnings("ignore:Scheduled")
@pytest.mark.parametrize("name", [n for n in SCHEDULES if n != "constant"])
def test_every_schedule_but_the_constant_ends_at_exactly_zero(name: str) -> None:
    for total in (2, 3, 7, 10, 101, 1000):
        assert strengths(scheduled(total, name))[-1] == 0.0


def test_shapes_of_the_schedules() -> None:
    at = {name: [SCHEDULES[name](p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] for name in SCHEDULES}
    assert at["triangle"] == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert at["linear"] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert at["constant"] == [1.0] * 5
    assert at["hold-then-decay"] == [1.0, 1.0, 1.0, 0.5, 0.0]
    assert at["cosine"] == pytest.approx(
        [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0], abs=1e-15
    )
    assert strengths(scheduled(3, lambda p: p**2)) == [0.0, 0.25, 1.0]


def test_the_model_gets_the_strengths_and_keeps_the_last() -> None:
    relaxation = chain(2)
    method = er.Scheduled(relaxation, total_steps=5)
    optimizer = torch.optim.SGD([p for p in relaxation.model.parameters() if p.requires_grad], lr=0.01)
    x, y = batch()
    method.attach(optimizer)
    seen = []
    for _ in range(7):
        seen.append([float(r.gamma) for _, r in relaxation])
        loss = (relaxation.model(x) - y).square().mean() + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert seen == [[g, g] for g in (0.0, 0.5, 1.0, 0.5, 0.0, 0.0, 0.0)]
    assert method.logs()["mixes.0"].keys() == {"gamma", "lie", "norm"}


def test_regulariser_times_gamma() -> None:
    x, _ = batch()
    values = {}
    for times in (False, True):
        relaxation = chain(2)
        method = er.Scheduled(relaxation, 5, schedule="constant", penalty_times_gamma=times)
        method.schedule = lambda p: 0.25
        relaxation.model(x)
        values[times] = method.penalty().item()
    assert values[False] > 0.0
    assert values[True] == pytest.approx(0.25 * values[False], rel=1e-12)


def test_without_weights_nothing_is_kept() -> None:
    method = scheduled(5)
    method.relaxation.model(batch()[0])
    assert float(method.penalty()) == 0.0
    assert all(residual.take_inputs() == [] for _, residual in method.relaxation)


def test_a_learnt_gamma_is_fixed_again() -> None:
    relaxation = chain(2)
    er.ACE(relaxation, dual_lr=0.1)
    for _, residual in relaxation:
        residual.gamma.grad = torch.ones(1, dtype=torch.float64)
    er.Scheduled(relaxation, 5)
    assert all(not r.gamma.requires_grad and r.gamma.grad is None for _, r in relaxation)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(MethodError, match="Did you mean 'triangle'"):
        resolve("tringle")
    with pytest.raises(MethodError, match="total_steps is 0"):
        scheduled(0)
    with pytest.raises(MethodError, match=r"total_steps is 82\.5"):  # gamma would not end at 0
        scheduled(82.5)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="steps_per_epoch is 0"):
        scheduled(5, steps_per_epoch=0)
    with pytest.raises(MethodError, match="finite"):
        scheduled(5, lambda p: math.nan)
    with pytest.raises(MethodError, match="Did you mean 'scheduled'"):
        er.methods.get("schedule")
    with pytest.raises(MethodError, match="Did you mean 'sgd'"):
        er.ACE(chain(2), dual_lr=0.1, dual_optimizer="sdg")
    with pytest.raises(MethodError, match="dual_lr is 0"):
        er.ACE(chain(2), dual_lr=0.0)
    with pytest.raises(MethodError, match=r"primal_lr is 1\.0 and rho is 2\.5"):
        er.ResilientACE(chain(2), dual_lr=0.1, primal_lr=1.0, rho=2.5)
    with pytest.raises(MethodError, match="augmented is -1"):
        er.ACE(chain(2), dual_lr=0.1, augmented=-1.0)
    with pytest.raises(MethodError, match="Did you mean 'mean'"):
        er.ACE(chain(2), dual_lr=0.1, reduction="meen")
    with pytest.raises(MethodError, match="primal_lr"):
        er.ResilientACE(chain(2), dual_lr=0.1)


def test_settings_are_given_by_name_or_as_an_object() -> None:
    relaxation = chain(2)
    settings = er.ACE.Settings(dual_lr=1, augmented=0.5)
    assert settings.dual_lr == 1.0
    assert er.ACE(relaxation, settings).settings == er.ACE(relaxation, dual_lr=1.0, augmented=0.5).settings
    assert er.ACE(relaxation, settings, pi=0.25).settings == er.ACE.Settings(
        dual_lr=1, augmented=0.5, pi=0.25
    )
    assert {"dual_lr", "augmented", "regularizer"} <= inspect.signature(er.ACE).parameters.keys()
    assert "fields" not in inspect.signature(er.ResilientACE).parameters
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.dual_lr = 2.0  # type: ignore[misc]
    for wrong in ({}, {"dual_lrr": 0.1}, {"dual_lr": "0.1"}, {"dual_lr": True}, {"dual_lr": math.nan}):
        with pytest.raises(MethodError, match="dual_lr"):
            er.ACE(relaxation, **wrong)
    for other in (0.1, er.Scheduled.Settings()):
        with pytest.raises(MethodError, match=r"ACE\.Settings"):
            er.ACE(relaxation, other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "method",
    [
        er.ACE,
        er.ResilientACE,
        er.Scheduled,
        er.methods.SymmetryFollowing,
        er.methods.REMUL,
        er.methods.RPP,
        er.Swing,
    ],
)
def test_every_field_has_a_docstring_and_every_number_a_range(method: type[er.methods.Method]) -> None:
    hints = types_of(method.Settings)
    for field in dataclasses.fields(method.Settings):
        assert documentation(method.Settings)[field.name]
        numbers = {"int", "float"} & set(re.findall(r"\w+", str(hints[field.name]).partition("Callable")[0]))
        assert (range_of(field) is not None) == bool(numbers), field.name


@pytest.mark.parametrize("wrong", [np.int64(0), np.float32("nan"), "10", None], ids=repr)
def test_steps_that_are_no_count_are_refused(wrong: Any) -> None:
    with pytest.raises(MethodError, match="total_steps"):
        scheduled(wrong)
    if wrong is not None:
        with pytest.raises(MethodError, match="steps_per_epoch"):
            scheduled(10, steps_per_epoch=wrong)


def test_steps_may_be_counted_by_numpy() -> None:
    assert strengths(scheduled(np.int64(5))) == strengths(scheduled(5))
