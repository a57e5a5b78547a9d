"""Skipped steps, stale optimizers, wrong order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from method_toys import batch, chain, gammas
from torch import Tensor

import equirelax as er
from equirelax.errors import MethodError, StaleOptimizerError
from equirelax.methods import Method
from equirelax.relaxation import Relaxation


class UncountedSGD(torch.optim.Optimizer):
    """An optimizer of the old style: it writes through `.data`, which moves no version counter."""

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad, alpha=-group["lr"])


METHODS: dict[str, Callable[[Relaxation], Method]] = {
    "ace": lambda r: er.ACE(r, dual_lr=0.1, pi=0.2),
    "ace-adam": lambda r: er.ACE(r, dual_lr=0.1, dual_optimizer="adam"),
    "resilient": lambda r: er.ResilientACE(r, dual_lr=0.1, primal_lr=0.1, augmented=0.1),
}
OPTIMIZERS: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.01, fused=True),
    "uncounted": lambda p: UncountedSGD(p, lr=0.01),
}


def loss_of(relaxation: Relaxation, method: Method) -> Tensor:
    x, y = batch(dtype=gammas(relaxation).dtype)
    return (relaxation.model(x) - y).square().mean() + method.penalty()


def vectors(method: Method) -> dict[str, Tensor]:
    return {k: v for k, v in method.state_dict().items() if isinstance(v, Tensor)}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("optimizer_kind", OPTIMIZERS)
@pytest.mark.parametrize("attached", [False, True])
def test_a_step_that_the_scaler_skips_moves_nothing(kind: str, optimizer_kind: str, attached: bool) -> None:
    relaxation = chain(2, dtype=torch.float32)
    method = METHODS[kind](relaxation)
    optimizer = OPTIMIZERS[optimizer_kind](list(relaxation.model.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    if attached:
        method.attach(optimizer)
    for step in range(6):
        before, seen = vectors(method), gammas(relaxation).detach().clone()
        loss = loss_of(relaxation, method)
        skipped = step in (2, 3)
        if skipped:
            loss = loss * float("inf")
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if not attached:
            method.step()
        after = vectors(method)
        if skipped:
            assert torch.equal(gammas(relaxation), seen)
            assert all(torch.equal(before[k], after[k]) for k in before)
        else:
            assert not torch.equal(before["multipliers"], after["multipliers"])
            assert not torch.equal(gammas(relaxation), seen)


def test_gradients_that_are_zero_are_no_skipped_step() -> None:
    relaxation = chain(2)
    method = er.ACE(relaxation, dual_lr=0.1)
    optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.01)
    (0.0 * loss_of(relaxation, method)).backward()
    optimizer.step()
    method.step()
    torch.testing.assert_close(method.multipliers, torch.full((2,), 0.1, dtype=torch.float64))


def test_micro_batches_count_once_and_see_the_same_gamma() -> None:
    results = []
    for parts in (1, 4):
        relaxation = chain(2)
        method = er.ACE(relaxation, dual_lr=0.1, augmented=0.5)
        optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.01)
        x, y = batch()
        for _ in range(5):
            optimizer.zero_grad()
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (((relaxation.model(a) - b).square().mean() + method.penalty()) / parts).backward()
            optimizer.step()
            method.step()
        results.append((method.multipliers.clone(), gammas(relaxation).detach()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_stepping_the_method_in_every_micro_batch_moves_it_once_per_optimizer_step() -> None:
    relaxation = chain(2)
    method = er.ACE(relaxation, dual_lr=0.1)
    optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.01)
    seen = torch.zeros(2, dtype=torch.float64)
    for batch_index in range(12):
        loss_of(relaxation, method).backward()
        if batch_index % 4 == 3:
            seen += gammas(relaxation).detach()
            optimizer.step()
            optimizer.zero_grad()
        method.step()
    torch.testing.assert_close(method.multipliers, 0.1 * seen)


def test_multipliers_move_by_the_gamma_that_penalty_saw() -> None:
    relaxation = chain(2)
    method = er.ACE(relaxation, dual_lr=0.1)
    optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.5)
    loss_of(relaxation, method).backward()
    optimizer.step()
    assert not torch.equal(gammas(relaxation).detach(), torch.ones(2, dtype=torch.float64))
    method.step()
    assert torch.equal(method.multipliers, torch.full((2,), 0.1, dtype=torch.float64))


def test_penalty_without_gradients_leaves_no_trace() -> None:
    relaxation = chain(2)
    method = er.ACE(relaxation, dual_lr=0.1, regularizer=er.relaxation.regularizers.LieDerivative(relaxation))
    method.multipliers.fill_(3.0)
    with torch.no_grad():
        assert float(method.penalty()) == pytest.approx(6.0)
    with pytest.raises(MethodError, match=r"without method\.penalty\(\)"):
        method.step()


def train(relaxation: Relaxation, method: Method, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        loss_of(relaxation, method).backward()
        optimizer.step()
        relaxation.model.zero_grad()
        method.step()


def test_an_optimizer_from_before_relax_is_found_out_in_two_steps() -> None:
    for kind in (lambda r: er.ACE(r, dual_lr=0.1), lambda r: er.Scheduled(r, total_steps=10)):
        relaxation = chain(2)
        optimizer = torch.optim.Adam(relaxation.strict_parameters().values(), lr=0.01)
        method = kind(relaxation)
        train(relaxation, method, optimizer, 1)
        with pytest.raises(StaleOptimizerError, match=r"mixes\.0\.equirelax_residual\.map\.weight.*attach"):
            train(relaxation, method, optimizer, 1)


def test_an_optimizer_from_before_the_method_holds_gamma() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    method = er.ACE(relaxation, dual_lr=0.1)
    train(relaxation, method, optimizer, 3)
    assert not torch.equal(gammas(relaxation), torch.ones(2, dtype=torch.float64))


def test_an_optimizer_without_gamma_is_found_out_in_two_steps() -> None:
    relaxation = chain(2)
    weights = [p for name, p in relaxation.model.named_parameters() if "gamma" not in name]
    optimizer = torch.optim.Adam(weights, lr=0.01)
    method = er.ACE(relaxation, dual_lr=0.1)
    train(relaxation, method, optimizer, 1)
    with pytest.raises(StaleOptimizerError, match=r"mixes\.1\.equirelax_residual\.gamma") as caught:
        train(relaxation, method, optimizer, 1)
    assert "weight" not in str(caught.value)


def test_frozen_and_unused_residuals_are_no_stale_optimizer() -> None:
    relaxation = chain(3)
    relaxation["mixes.0"].map.requires_grad_(False)
    method = er.ACE(relaxation, dual_lr=0.1)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    relaxation["mixes.2"].enabled = False  # its map gets no gradient and Adam leaves it alone
    train(relaxation, method, optimizer, 5)
    assert float(method.multipliers.min()) > 0.0


@pytest.mark.parametrize("gamma_optimizer", ["sgd", "uncounted", "adam-fused"])
@pytest.mark.parametrize("strict_optimizer", ["sgd", "uncounted", "adam-fused"])
def test_two_optimizers_of_any_kind_are_no_stale_optimizer(
    gamma_optimizer: str, strict_optimizer: str
) -> None:
    relaxation = chain(2)
    method = er.ACE(relaxation, dual_lr=0.1)
    gammas_ = list(relaxation.gamma_parameters().values())
    weights = [p for name, p in relaxation.model.named_parameters() if not name.endswith("gamma")]
    first, second = OPTIMIZERS[strict_optimizer](weights), OPTIMIZERS[gamma_optimizer](gammas_)
    seen = torch.zeros(2, dtype=torch.float64)
    for _ in range(6):
        loss_of(relaxation, method).backward()
        seen += gammas(relaxation).detach()
        first.step()
        second.step()
        relaxation.model.zero_grad()
        method.step()
    torch.testing.assert_close(method.multipliers, 0.1 * seen)


def test_the_wrong_order_is_an_error() -> None:
    relaxation = chain(2)
    method = er.ACE(relaxation, dual_lr=0.1)
    optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.01)
    for _ in range(2):
        loss_of(relaxation, method).backward()
        method.step()
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(MethodError, match=r"before optimizer\.step\(\)"):
        method.penalty()
    assert float(method.multipliers.abs().max()) == 0.0


def test_no_hook_stays_on_the_parameters() -> None:
    relaxation = chain(2)
    method = er.ACE(relaxation, dual_lr=0.1)
    optimizer = torch.optim.SGD(relaxation.model.parameters(), lr=0.01)
    train(relaxation, method, optimizer, 2)
    assert not any(p._post_accumulate_grad_hooks for p in relaxation.model.parameters())
