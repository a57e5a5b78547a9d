"""Strict, state dicts, resuming bit for bit, logs, and following a model that moves."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from method_toys import batch, chain, gammas

import equirelax as er
from equirelax.errors import MethodError
from equirelax.methods import Method
from equirelax.relaxation import Relaxation


def seeded_penalty(relaxation: Relaxation) -> er.relaxation.regularizers.Regularizer:
    return er.relaxation.regularizers.LieDerivative(
        relaxation, rows=3, generator=torch.Generator().manual_seed(5)
    )


def score_of(relaxation: Relaxation) -> er.auditing.SymmetryScore:
    """Of the toy's network on a batch that no step trains on."""
    return er.symmetry_score(
        relaxation.model, batch(seed=99), lambda model, b: (model(b[0]) - b[1]).square().sum(1)
    )


METHODS: dict[str, Callable[[Relaxation], Method]] = {
    "strict": er.Strict,
    "scheduled": lambda r: er.Scheduled(r, 10, rows=3, generator=torch.Generator().manual_seed(5)),
    "ace": lambda r: er.ACE(r, dual_lr=0.1),
    "ace-adam-pi": lambda r: er.ACE(
        r, dual_lr=0.1, dual_optimizer="adam", pi=0.3, regularizer=seeded_penalty(r)
    ),
    "resilient": lambda r: er.ResilientACE(r, dual_lr=0.1, primal_lr=0.05),
    "rpp": lambda r: er.methods.RPP(r, eq_weight=1e-3, residual_weight=1e-2),
    "swing": lambda r: er.Swing(r, period=8, finish=7),
    "symmetry-following": lambda r: er.methods.SymmetryFollowing(r, score_of, measure_every=3),
    "resilient-all": lambda r: er.ResilientACE(
        r,
        dual_lr=0.1,
        primal_lr=0.05,
        dual_optimizer="adam",
        pi=0.3,
        augmented=0.2,
        regularizer=seeded_penalty(r),
    ),
}


class Run:
    """A model, a method and Adam, trained on batches that depend on the step alone."""

    def __init__(self, kind: str, layers: int = 2) -> None:
        self.relaxation = chain(layers)
        self.method = METHODS[kind](self.relaxation)
        trainable = [p for p in self.relaxation.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trainable, lr=0.01)
        self.method.attach(self.optimizer)
        self.losses: list[float] = []

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            x, y = batch(seed=step)
            loss = (self.relaxation.model(x) - y).square().mean() + self.method.penalty()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())

    def save(self) -> bytes:
        buffer = io.BytesIO()
        parts = {"model": self.relaxation.model, "method": self.method, "optimizer": self.optimizer}
        torch.save({name: part.state_dict() for name, part in parts.items()}, buffer)  # type: ignore[attr-defined]
        return buffer.getvalue()

    def load(self, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self.relaxation.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load_state_dict(state["method"])


def assert_same_state(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_state(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("kind", METHODS)
def test_resuming_continues_bit_for_bit(kind: str) -> None:
    whole, first, second = Run(kind), Run(kind), Run(kind)
    whole.train(0, 10)
    first.train(0, 5)
    second.load(first.save())
    second.train(5, 10)
    assert whole.losses == first.losses + second.losses
    assert_same_state(whole.relaxation.model.state_dict(), second.relaxation.model.state_dict())
    assert_same_state(whole.method.state_dict(), second.method.state_dict())
    assert whole.method.logs() == second.method.logs()


def test_a_state_is_a_copy() -> None:
    run = Run("resilient-all")
    run.train(0, 2)
    state = run.method.state_dict()
    before = {k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)}
    run.train(2, 4)
    assert all(torch.equal(state[k], v) for k, v in before.items())


def test_states_that_do_not_fit_are_refused_and_change_nothing() -> None:
    small, large = Run("ace-adam-pi", layers=2), Run("ace-adam-pi", layers=3)
    small.train(0, 2)
    large.train(0, 2)
    before = large.method.state_dict()
    with pytest.raises(MethodError, match=r"only here \['mixes\.2'\]"):
        large.method.load_state_dict(small.method.state_dict())
    with pytest.raises(MethodError, match="method 'ace', this is 'resilient'"):
        Run("resilient", layers=3).method.load_state_dict(before)
    with pytest.raises(MethodError, match="dual_optimizer='adam', this method has 'sgd'"):
        Run("ace", layers=3).method.load_state_dict(before)
    with pytest.raises(MethodError, match=r"'multipliers' of the state is \(5,\)"):
        large.method.load_state_dict({**before, "multipliers": torch.zeros(5)})
    with pytest.raises(MethodError, match=r"'second' has shape \(1,\)"):
        large.method.load_state_dict({**before, "dual": {**before["dual"], "second": torch.zeros(1)}})
    with pytest.raises(MethodError, match=r"strengths of shape \(2,\)"):
        large.method.load_state_dict({**before, "gammas": torch.zeros(2)})
    with pytest.raises(MethodError, match=r"lacks \['proportional'\]"):
        large.method.load_state_dict({k: v for k, v in before.items() if k != "proportional"})
    assert_same_state(large.method.state_dict(), before)


def test_strict_trains_the_strict_model() -> None:
    plain = chain(2).model
    reference = er.project(plain) and plain
    run = Run("strict")
    x, y = batch()
    assert torch.equal(run.relaxation.model(x), reference(x))
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.01)
    run.train(0, 3)
    for step in range(3):
        x, y = batch(seed=step)
        optimizer.zero_grad()
        (reference(x) - y).square().mean().backward()
        optimizer.step()
    assert_same_state(run.relaxation.strict_state_dict(), reference.state_dict())
    assert run.method.logs() == {"mixes.0": {"gamma": 0.0}, "mixes.1": {"gamma": 0.0}}


def test_a_method_after_strict_switches_the_residuals_on_again() -> None:
    run = Run("strict")
    er.ACE(run.relaxation, dual_lr=0.1)
    assert all(residual.enabled for _, residual in run.relaxation)
    assert all(p.requires_grad for p in run.relaxation.model.parameters())


def test_logs_per_layer() -> None:
    run = Run("resilient-all")
    run.train(0, 3)
    logs = run.method.logs()
    assert list(logs) == ["mixes.0", "mixes.1"]
    keys = {"gamma", "multiplier", "effective_multiplier", "slack", "lie", "norm"}
    assert all(
        row.keys() == keys and all(isinstance(v, float) for v in row.values()) for row in logs.values()
    )
    assert [row["gamma"] for row in logs.values()] == gammas(run.relaxation).tolist()
    assert min(row["lie"] for row in logs.values()) > 0.0


def test_which_methods_deploy_relaxed() -> None:
    assert er.methods.names() == [
        "strict",
        "scheduled",
        "ace",
        "resilient",
        "remul",
        "rpp",
        "swing",
        "symmetry-following",
    ]
    relaxed = [name for name in er.methods.names() if er.methods.get(name).deploys_relaxed]
    assert relaxed == ["resilient", "remul", "rpp", "symmetry-following"]
    assert all(er.methods.descriptions().values())


def test_initial_strengths_can_be_kept() -> None:
    relaxation = chain(2)
    relaxation["mixes.0"].set_gamma(0.25)
    er.ACE(relaxation, dual_lr=0.1, initial=None)
    assert gammas(relaxation).tolist() == [0.25, 0.0]
    er.ACE(relaxation, dual_lr=0.1)
    assert gammas(relaxation).tolist() == [1.0, 1.0]


def test_multipliers_follow_a_model_that_changes_dtype() -> None:
    relaxation = chain(2, dtype=torch.float32)
    method = er.ResilientACE(relaxation, dual_lr=0.1, primal_lr=0.1, dual_optimizer="adam")
    optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.01)
    for dtype in (torch.float32, torch.float64):
        relaxation.model.to(dtype)
        x, y = batch(dtype=dtype)
        ((relaxation.model(x) - y).square().mean() + method.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        method.step()
        assert method.multipliers.dtype == method.slacks.dtype == dtype


def test_half_precision_strengths_have_float32_multipliers() -> None:
    relaxation = chain(2, dtype=torch.bfloat16)
    method = er.ACE(relaxation, dual_lr=1e-4)
    assert method.multipliers.dtype == torch.float32


def test_a_projected_model_has_nothing_to_drive() -> None:
    relaxation = chain(2)
    er.project(relaxation.model)
    with pytest.raises(er.EquirelaxError):
        er.ACE(relaxation, dual_lr=0.1)


@pytest.mark.parametrize(
    "build",
    [lambda r, steps: er.Scheduled(r, steps), lambda r, steps: er.Swing(r, period=steps)],
    ids=["scheduled", "swing"],
)
def test_a_course_of_another_length_holds_from_the_first_step(build: Any) -> None:
    first = build(chain(2), 5)
    x, _ = batch()
    optimizer = torch.optim.SGD(first.relaxation.model.parameters(), lr=0.0)
    first.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        (first.relaxation.model(x).square().mean() + first.penalty()).backward()
        optimizer.step()
    longer = build(chain(2), 41)
    longer.load_state_dict(first.state_dict())
    assert longer.relaxation.gammas().tolist() == pytest.approx([longer.gamma_at(2)] * 2)


def test_strict_leaves_nothing_that_an_optimizer_goes_on_moving() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.1)
    method: Method = er.ACE(relaxation, dual_lr=0.1, initial=1.0).attach(optimizer)
    x, y = batch()
    for step in range(3):
        if step == 2:
            method = er.Strict(relaxation).attach(optimizer)
            before = {key: p.detach().clone() for key, p in relaxation.residual_parameters().items()}
        loss = (relaxation.model(x) - y).square().mean() + method.penalty()
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
    assert all(torch.equal(p, before[key]) for key, p in relaxation.residual_parameters().items())
