"""Inputs that residuals keep for a method's penalty: those of the batches that count, and only while somebody reads them."""

from __future__ import annotations

import copy
import gc
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from method_toys import batch, chain
from torch import Tensor

import equirelax as er
from equirelax.errors import MethodError, PenaltyError
from equirelax.methods import REMUL, Method
from equirelax.relaxation import Relaxation, relaxation_of
from equirelax.relaxation.regularizers import LieDerivative, safe_root


def scheduled(relaxation: Relaxation) -> Method:
    return er.Scheduled(relaxation, total_steps=10, schedule="constant")


def kept(relaxation: Relaxation) -> list[int]:
    return [residual.inputs_kept for _, residual in relaxation]


def forward(relaxation: Relaxation, steps: int = 3) -> list[int]:
    """Call the model; the numbers of inputs that its residuals have kept then."""
    for step in range(steps):
        relaxation.model(batch(seed=step)[0])
    return kept(relaxation)


# Batches that are left out


def trained(bad: Tensor | None, skips: Callable[[Method], Any]) -> tuple[list[float], list[Tensor]]:
    """Train on two batches, and on a bad one between them that the loop leaves out: losses, and weights."""
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    method = scheduled(relaxation).attach(optimizer)
    losses = []
    for number, x in enumerate((batch(seed=0)[0], bad, batch(seed=1)[0])):
        if x is None:
            continue
        task = relaxation.model(x).square().mean()
        if number == 1:
            skips(method)
            continue
        loss = task + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, list(relaxation.model.parameters())


@pytest.mark.parametrize("entry", [math.inf, math.nan, 1e4])
def test_a_batch_that_is_skipped_does_not_count_in_the_next_penalty(entry: float) -> None:
    bad = batch(seed=2)[0]
    bad[0, 0] = entry
    losses, weights = trained(bad, lambda method: method.skip())
    expected, without = trained(None, lambda method: None)
    assert losses == expected
    assert all(torch.equal(a, b) for a, b in zip(weights, without, strict=True))


def test_a_bad_batch_that_counts_is_seen_in_the_loss() -> None:
    bad = batch(seed=2)[0]
    bad[0, 0] = math.inf
    losses, _ = trained(bad, lambda method: None)
    assert math.isnan(losses[-1])


def test_the_root_of_nan_is_nan() -> None:
    assert safe_root(torch.tensor([math.nan, 0.0, 4.0])).tolist() == pytest.approx(
        [math.nan, 0, 2], nan_ok=True
    )


# What is kept, and how long


def test_a_copy_of_a_model_keeps_nothing_for_a_method_that_it_does_not_have() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters())
    method = scheduled(relaxation).attach(optimizer)
    assert forward(relaxation) == [3, 3]
    for twin in (copy.deepcopy(relaxation.model), pickle.loads(pickle.dumps(relaxation.model))):
        assert forward(relaxation_of(twin)) == [0, 0]
    assert kept(relaxation) == [3, 3]
    assert torch.isfinite(method.penalty())


def test_a_copied_method_reads_what_its_copied_model_keeps() -> None:
    relaxation = chain(2)
    _, twin = copy.deepcopy((relaxation.model, scheduled(relaxation)))
    forward(twin.relaxation)
    assert torch.isfinite(twin.penalty())


def test_nothing_is_kept_once_the_method_is_gone() -> None:
    relaxation = chain(2)
    method = scheduled(relaxation)
    assert forward(relaxation) == [3, 3]
    del method
    assert kept(relaxation) == [0, 0]
    assert forward(relaxation) == [0, 0]


def test_nothing_is_kept_once_residuals_are_pruned() -> None:
    relaxation = chain(2)
    method = scheduled(relaxation).attach(torch.optim.Adam(relaxation.model.parameters()))
    relaxation["mixes.0"].set_gamma(0.0)
    forward(relaxation)
    relaxation.prune()
    assert forward(relaxation) == [0]
    with pytest.raises(MethodError, match="were removed"):
        method.attach(torch.optim.Adam(relaxation.model.parameters()))


def test_a_part_in_evaluation_mode_is_penalised_while_the_rest_trains() -> None:
    """As with frozen batch norms: its residual trains, and so its penalty counts."""
    penalties = []
    for frozen in (False, True):
        relaxation = chain(2)
        method = scheduled(relaxation)
        relaxation.model.get_submodule("mixes.0").train(not frozen)
        assert forward(relaxation) == [3, 3]
        penalties.append(method.penalty())
    assert penalties[0] == penalties[1]
    with torch.no_grad():
        assert forward(relaxation) == [0, 0]
    assert forward(relaxation_of(copy.deepcopy(relaxation.model))) == [0, 0]
    relaxation.model.eval()
    assert forward(relaxation) == [0, 0]


def test_a_regularizer_of_a_part_has_that_part_alone_keep_inputs() -> None:
    relaxation = chain(2)
    part = relaxation_of(relaxation.model.get_submodule("mixes.0"))
    method = er.ACE(relaxation, dual_lr=0.1, regularizer=LieDerivative(part))
    assert forward(relaxation) == [3, 0]
    method.penalty()
    rows = method.logs()
    assert rows["mixes.0"].keys() - rows["mixes.1"].keys() == {"lie", "norm"}
    assert rows["mixes.0"]["lie"] > 0


def test_a_regularizer_of_ones_own_keeps_inputs_beside_a_method_that_reads_none() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters())
    method = er.ACE(relaxation, dual_lr=0.1)
    own = LieDerivative(relaxation)
    method.attach(optimizer)
    assert forward(relaxation) == [3, 3]
    assert torch.isfinite(own())
    del method, optimizer
    gc.collect()
    assert forward(relaxation) == [3, 3]
    assert torch.isfinite(own())
    del own
    assert kept(relaxation) == [0, 0]
    assert forward(relaxation) == [0, 0]


# Methods that follow one another


@pytest.mark.parametrize("attached", [True, False])
def test_a_method_that_was_replaced_cannot_be_attached_again(attached: bool) -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters())
    first = scheduled(relaxation)
    if attached:
        first.attach(optimizer)
    second = er.ACE(relaxation, dual_lr=0.1).attach(optimizer)
    assert forward(relaxation) == [0, 0]  # ACE has no regularizer
    with pytest.raises(MethodError, match="ACE took over"):
        first.attach(optimizer)
    second.penalty()
    again = scheduled(relaxation).attach(optimizer)
    assert not any(residual.is_learnt for _, residual in relaxation)
    forward(relaxation)
    assert torch.isfinite(again.penalty())


def test_a_method_that_has_ended_ends_no_other() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters())
    whole = scheduled(relaxation)
    parts = [relaxation_of(relaxation.model.get_submodule(f"mixes.{index}")) for index in range(2)]
    first, second = [scheduled(part).attach(optimizer) for part in parts]
    assert forward(relaxation) == [3, 3]
    assert torch.isfinite(first.penalty())
    assert torch.isfinite(second.penalty())
    with pytest.raises(MethodError, match="took over"):
        whole.penalty()


def test_a_method_that_has_ended_loads_nothing() -> None:
    relaxation = chain(2)
    first = scheduled(relaxation)
    state = first.state_dict()
    er.ACE(relaxation, dual_lr=0.1)
    with pytest.raises(MethodError, match="ACE took over"):
        first.load_state_dict(state)
    assert forward(relaxation) == [0, 0]


FAILS: dict[str, Callable[[Relaxation], object]] = {
    "symmetry-following without a measure": er.methods.SymmetryFollowing,
    "a schedule that is not a number": lambda r: er.Scheduled(r, 5, schedule=lambda progress: math.nan),
    "gradnorm without parameters": lambda r: REMUL(r, weighting="gradnorm", shared=[]),
    "an unknown setting": lambda r: er.ACE(r, dual_lr=0.1, nonsense=1),
}


@pytest.mark.parametrize("case", list(FAILS))
def test_a_method_that_cannot_be_made_ends_no_other(case: str) -> None:
    relaxation = chain(2)
    relaxation.set_gamma(0.3)
    optimizer = torch.optim.Adam(relaxation.model.parameters())
    running = er.ACE(relaxation, dual_lr=0.1).attach(optimizer)
    before = relaxation.gammas()
    with pytest.raises(MethodError):
        FAILS[case](relaxation)
    assert torch.equal(relaxation.gammas(), before)
    assert len(relaxation.gamma_parameters()) == 2
    forward(relaxation)
    assert torch.isfinite(running.penalty())


def test_a_method_that_has_ended_does_not_step() -> None:
    relaxation = chain(2)
    first = scheduled(relaxation)
    forward(relaxation)
    first.penalty()
    er.ACE(relaxation, dual_lr=0.1, initial=1.0)
    with torch.no_grad():
        for parameter in relaxation.model.parameters():
            parameter.add_(0.1)
    before = relaxation.gammas()
    with pytest.raises(MethodError, match="ACE took over"):
        first.step()
    assert torch.equal(relaxation.gammas(), before)


def test_a_copy_is_known_to_the_residuals_of_its_own_model() -> None:
    relaxation = chain(2)
    first = scheduled(relaxation)
    twin = copy.deepcopy(first)
    er.ACE(twin.relaxation, dual_lr=0.1)
    with pytest.raises(MethodError, match="ACE took over"):
        twin.penalty()
    forward(relaxation)
    assert torch.isfinite(first.penalty())
    again = copy.deepcopy(first)
    er.project(again.relaxation.model)
    with pytest.raises(MethodError, match="removed"):
        again.penalty()


def test_a_regularizer_that_is_gone_leaves_the_inputs_to_the_one_before() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters())
    method = scheduled(relaxation).attach(optimizer)
    for_a_log = LieDerivative(relaxation)
    assert forward(relaxation) == [3, 3]
    del for_a_log
    gc.collect()
    assert forward(relaxation)[0] > 0
    assert torch.isfinite(method.penalty())
    other = LieDerivative(relaxation)
    other.stop()
    forward(relaxation)
    assert torch.isfinite(method.penalty())


def test_a_state_that_is_loaded_forgets_inputs_and_changes_nothing_where_it_does_not_fit() -> None:
    relaxation = chain(2)
    method = scheduled(relaxation)
    state = method.state_dict()
    relaxation.model(torch.full((3, 6), torch.nan, dtype=torch.float64))
    method.load_state_dict(state)
    forward(relaxation)
    assert torch.isfinite(method.penalty())
    damaged = {**state, "steps": 3, "regularizer": {"generator": None}}
    with pytest.raises(PenaltyError, match="steps"):
        method.load_state_dict(damaged)
    assert method.steps == 0
