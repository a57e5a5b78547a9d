"""A method that steps with its optimizers: groups, hooks, what ends them, and what is said where they are missing."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from method_toys import batch, chain
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

import equirelax as er
from equirelax.errors import EquirelaxWarning, MethodError, StaleOptimizerError
from equirelax.methods import Method
from equirelax.methods.attachment import PATIENCE
from equirelax.relaxation import Relaxation, relaxation_of

needs_muon = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9"
)


def ace(relaxation: Relaxation) -> Method:
    return er.ACE(relaxation, dual_lr=0.1, dual_optimizer="adam")


def scheduled(relaxation: Relaxation) -> Method:
    return er.Scheduled(relaxation, total_steps=40, schedule="linear")


def loss_of(relaxation: Relaxation, method: Method, step: int = 0) -> Tensor:
    x, y = batch(seed=step, dtype=relaxation.gammas().dtype)
    return (relaxation.model(x) - y).square().mean() + method.penalty()


def train(
    relaxation: Relaxation,
    method: Method,
    optimizers: list[torch.optim.Optimizer],
    steps: int,
    after: Callable[[float], None] = lambda loss: None,
) -> list[float]:
    losses = []
    for step in range(steps):
        loss = loss_of(relaxation, method, step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
        after(losses[-1])
    return losses


def multipliers(method: Method) -> list[float]:
    return [row["multiplier"] for row in method.logs().values()]


def not_gamma(relaxation: Relaxation) -> list[nn.Parameter]:
    return [p for name, p in relaxation.model.named_parameters() if not name.endswith("gamma")]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("make", [ace, scheduled])
def test_attached_is_stepped_by_hand_bit_for_bit(make: Callable[[Relaxation], Method], kind: str) -> None:
    found = []
    for attached in (True, False):
        relaxation = chain(2)
        optimizer = OPTIMIZERS[kind](relaxation.model.parameters())
        method = make(relaxation)
        if attached:
            assert method.attach(optimizer) is method
        elif kind == "adamw":  # what attach sees to
            optimizer = torch.optim.AdamW(
                [
                    {"params": not_gamma(relaxation)},
                    {"params": [r.gamma for _, r in relaxation], "weight_decay": 0.0},
                ],
                lr=0.01,
                weight_decay=0.1,
            )
        step = (lambda loss: None) if attached else (lambda loss, method=method: method.step())
        losses = train(relaxation, method, [optimizer], 5, step)
        found.append((losses, method.logs(), [p.tolist() for p in relaxation.model.parameters()]))
    assert found[0] == found[1]


def test_made_in_the_natural_order_the_optimizer_holds_everything() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    ace(relaxation).attach(optimizer)
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.param_groups[0]["params"]) == len(list(relaxation.model.parameters()))


# Groups


def test_what_the_optimizer_lacks_is_added_with_the_settings_of_its_first_group() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.AdamW(relaxation.strict_parameters().values(), lr=0.02, weight_decay=0.3)
    method = ace(relaxation).attach(optimizer)
    strict, residual, gamma = optimizer.param_groups
    assert [id(p) for p in residual["params"]] == [id(p) for p in relaxation.residual_parameters().values()]
    assert [id(p) for p in gamma["params"]] == [id(r.gamma) for _, r in relaxation]
    assert [g["lr"] for g in (strict, residual, gamma)] == [0.02] * 3
    assert [g["weight_decay"] for g in (strict, residual, gamma)] == [0.3, 0.3, 0.0]
    train(relaxation, method, [optimizer], 2)
    assert multipliers(method) != [0.0, 0.0]


def test_settings_of_the_added_group_can_be_given() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.AdamW(relaxation.strict_parameters().values(), lr=0.02)
    ace(relaxation).attach(optimizer, lr=0.5, weight_decay=0.7)
    assert [g["lr"] for g in optimizer.param_groups] == [0.02, 0.5, 0.5]
    assert [g["weight_decay"] for g in optimizer.param_groups[1:]] == [0.7, 0.0]


def test_settings_that_no_group_has_or_that_would_do_nothing_are_refused() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.strict_parameters().values(), lr=0.02)
    with pytest.raises(MethodError, match=r"'learning_rate'.* lr"):
        ace(relaxation).attach(optimizer, learning_rate=0.5)
    assert len(optimizer.param_groups) == 1
    whole = torch.optim.Adam(relaxation.model.parameters(), lr=0.02)
    with pytest.raises(MethodError, match="lr would have no effect"):
        ace(relaxation).attach(whole, lr=0.5)


def test_strengths_that_are_not_learnt_and_frozen_weights_are_not_added() -> None:
    relaxation = chain(2)
    relaxation["mixes.0"].map.requires_grad_(False)
    optimizer = torch.optim.Adam(relaxation.strict_parameters().values(), lr=0.02)
    scheduled(relaxation).attach(optimizer)
    assert [len(g["params"]) for g in optimizer.param_groups] == [2, 1]


@pytest.mark.parametrize("named", [False, True])
def test_gamma_moves_out_of_a_group_with_weight_decay(named: bool) -> None:
    relaxation = chain(2)
    given = (relaxation.model.named_parameters if named else relaxation.model.parameters)()
    optimizer = torch.optim.AdamW(given, lr=0.01, weight_decay=0.5)
    ace(relaxation).attach(optimizer)
    first, second = optimizer.param_groups
    assert [id(p) for p in second["params"]] == [id(r.gamma) for _, r in relaxation]
    assert (first["weight_decay"], second["weight_decay"]) == (0.5, 0.0)
    assert not {id(p) for p in first["params"]} & {id(p) for p in second["params"]}
    if named:
        assert second["param_names"] == [f"mixes.{i}.equirelax_residual.gamma" for i in range(2)]
        assert len(first["param_names"]) == len(first["params"])


def test_settings_that_are_lists_are_none_of_single_parameters() -> None:
    """Two betas stay two, also in a group of two parameters."""
    relaxation = chain(1)
    ace(relaxation)
    gamma = relaxation["mixes.0"].gamma
    weight, *others = (p for p in relaxation.model.parameters() if p is not gamma)
    groups: list[dict[str, Any]] = [{"params": others}, {"params": [weight, gamma]}]
    for optimizer in (
        er.optim.Muon(relaxation.model, 0.1, params=groups, adam_betas=[0.9, 0.99], weight_decay=0.1),  # type: ignore[arg-type]
        torch.optim.AdamW([dict(group) for group in groups], lr=0.1, betas=[0.9, 0.99]),  # type: ignore[arg-type]
    ):
        ace(relaxation).attach(optimizer)
        names = {"adam_betas", "betas"} & set(optimizer.defaults)
        assert [list(g[name]) for name in names for g in optimizer.param_groups] == [[0.9, 0.99]] * 3
        assert [len(g["params"]) for g in optimizer.param_groups] == [len(others), 1, 1]


def test_a_moved_gamma_has_a_learning_rate_of_its_own() -> None:
    """One that a tensor holds, and that schedulers change in place."""
    relaxation = chain(2)
    optimizer = torch.optim.AdamW(relaxation.model.parameters(), lr=torch.tensor(0.01), weight_decay=0.5)
    ace(relaxation).attach(optimizer)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.005, 0.005])


def test_a_group_of_gammas_alone_stops_decaying_at_any_time() -> None:
    relaxation = chain(2)
    gammas = [r.gamma for _, r in relaxation]
    optimizer = torch.optim.AdamW(
        [{"params": not_gamma(relaxation)}, {"params": gammas}], lr=0.01, weight_decay=0.5
    )
    method = scheduled(relaxation).attach(optimizer)
    train(relaxation, method, [optimizer], 2)
    ace(relaxation).attach(optimizer)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.0]


@pytest.mark.parametrize("why", ["state", "scheduler"])
def test_a_gamma_that_decays_and_cannot_be_moved_is_told(why: str) -> None:
    relaxation = chain(2)
    optimizer = torch.optim.AdamW(relaxation.model.parameters(), lr=0.01, weight_decay=0.5)
    if why == "state":
        train(relaxation, scheduled(relaxation).attach(optimizer), [optimizer], 1)
    else:
        lr_scheduler.ConstantLR(optimizer)
    with pytest.warns(EquirelaxWarning, match=r"weight decay \(0\.5\).*mixes\.0"):
        ace(relaxation).attach(optimizer)
    assert len(optimizer.param_groups) == 1


def stepped(relaxation: Relaxation) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(relaxation.strict_parameters().values(), lr=0.01)
    x, y = batch()
    (relaxation.model(x) - y).square().mean().backward()
    optimizer.step()
    return optimizer


def with_scheduler(relaxation: Relaxation) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(relaxation.strict_parameters().values(), lr=0.01)
    optimizer.scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, 10)  # type: ignore[attr-defined]
    return optimizer


def muon(relaxation: Relaxation) -> torch.optim.Optimizer:
    return torch.optim.Muon(relaxation.strict_parameters().values(), lr=0.01)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        pytest.param(stepped, "taken steps", id="state"),
        pytest.param(with_scheduler, "scheduler", id="scheduler"),
        pytest.param(muon, "matrices only", id="muon", marks=needs_muon),
    ],
)
def test_an_optimizer_that_can_take_no_group_is_refused_and_left_alone(
    make: Callable[[Relaxation], torch.optim.Optimizer], why: str
) -> None:
    relaxation = chain(2)
    optimizer = make(relaxation)
    with pytest.raises(StaleOptimizerError, match=rf"mixes\.0\.weight.*{why}.*\[optimizer, second\]"):
        ace(relaxation).attach(optimizer)
    assert len(optimizer.param_groups) == 1
    assert not optimizer._optimizer_step_post_hooks
    # the second optimizer that the message asks for
    second = torch.optim.Adam(
        [*relaxation.residual_parameters().values(), *relaxation.gamma_parameters().values()], lr=0.01
    )
    method = ace(relaxation).attach([optimizer, second])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(relaxation, method, [optimizer, second], 3)
    assert multipliers(method) != [0.0, 0.0]


@pytest.mark.parametrize("make", [ace, scheduled])
def test_a_model_in_the_place_of_its_relaxation_is_refused(make: Callable[[Any], Method]) -> None:
    with pytest.raises(MethodError, match=r"the relaxation is a Sequential; expected what equirelax\.relax"):
        make(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("wrong", ["lie-derivative", er.relaxation.regularizers.LieDerivative], ids=str)
def test_a_name_or_a_class_is_no_regularizer(wrong: Any) -> None:
    with pytest.raises(MethodError, match="the regularizer is"):
        er.ACE(chain(2), dual_lr=0.1, regularizer=wrong)


def test_lbfgs_and_what_is_no_optimizer_are_refused() -> None:
    relaxation = chain(2)
    method = ace(relaxation)
    with pytest.raises(MethodError, match="LBFGS evaluates"):
        method.attach(torch.optim.LBFGS(relaxation.model.parameters()))
    with pytest.raises(MethodError, match=r"not a str.*method\.step\(\)"):
        method.attach("adam")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="not a NoneType"):
        method.attach(None)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="different"):
        method.attach([])
    optimizer = torch.optim.Adam(relaxation.model.parameters())
    with pytest.raises(MethodError, match="different"):
        method.attach([optimizer, optimizer])


# Several optimizers, skipped steps, schedulers


@needs_muon
def test_muon_beside_adam_and_a_step_when_both_have_stepped() -> None:
    relaxation = chain(2)
    matrices = [p for p in not_gamma(relaxation) if p.dim() == 2]
    others = [r.gamma for _, r in relaxation]
    optimizers = [torch.optim.Muon(matrices, lr=0.01), torch.optim.AdamW(others, lr=0.01)]
    method = ace(relaxation).attach(optimizers)
    loss_of(relaxation, method).backward()
    optimizers[1].step()
    assert multipliers(method) == [0.0, 0.0]
    optimizers[1].step()  # it counts once
    assert multipliers(method) == [0.0, 0.0]
    optimizers[0].step()
    assert multipliers(method) != [0.0, 0.0]
    train(relaxation, method, optimizers, 3)


def pair(relaxation: Relaxation) -> list[torch.optim.Optimizer]:
    """One optimizer of the weights, and one of the strengths."""
    gammas = [r.gamma for _, r in relaxation]
    return [torch.optim.SGD(params, lr=0.01) for params in (not_gamma(relaxation), gammas)]


def test_an_optimizer_that_steps_seldom_is_no_reason_for_a_warning() -> None:
    relaxation = chain(2)
    often, seldom = pair(relaxation)
    method = ace(relaxation).attach([often, seldom])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            train(relaxation, method, [often], 4)
            before = multipliers(method)
            train(relaxation, method, [often, seldom], 1)
            assert multipliers(method) != before


def test_of_several_optimizers_one_that_was_replaced_is_noticed() -> None:
    relaxation = chain(2)
    often, seldom = pair(relaxation)
    method = ace(relaxation).attach([often, seldom])
    train(relaxation, method, [often, seldom], 2)
    with pytest.warns(EquirelaxWarning, match=r"no longer steps.*all of the optimizers"):
        train(relaxation, method, [often, pair(relaxation)[1]], 4)


def test_of_several_optimizers_one_that_is_forgotten_is_noticed_while_training() -> None:
    relaxation = chain(2)
    often, forgotten = pair(relaxation)
    method = ace(relaxation).attach([often, forgotten])
    with pytest.warns(EquirelaxWarning, match=r"has not stepped yet.*all of the optimizers"):
        train(relaxation, method, [often], PATIENCE + 3)


def test_optimizers_may_come_from_any_collection() -> None:
    relaxation = chain(2)
    optimizers = dict(zip("ab", pair(relaxation), strict=True))
    method = ace(relaxation).attach(optimizers.values())  # type: ignore[arg-type]
    train(relaxation, method, list(optimizers.values()), 1)
    assert multipliers(method) != [0.0, 0.0]


def test_of_several_optimizers_one_that_never_stepped_is_named_at_the_projection() -> None:
    relaxation = chain(2)
    often, seldom = pair(relaxation)
    method = ace(relaxation).attach([often, seldom])
    train(relaxation, method, [often], 3)
    with pytest.warns(EquirelaxWarning, match=r"never stepped.*all of the optimizers"):
        er.project(relaxation.model)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("make", [ace, scheduled])
def test_a_step_that_the_scaler_skips_is_none(make: Callable[[Relaxation], Method], kind: str) -> None:
    """Multipliers and schedules alike: a method takes as many steps as its optimizer."""
    relaxation = chain(2, dtype=torch.float32)
    optimizer = OPTIMIZERS[kind](relaxation.model.parameters())
    method = make(relaxation).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for step in range(6):
        before = method.logs()
        loss = loss_of(relaxation, method, step)
        skipped = step in (0, 2, 3)
        optimizer.zero_grad()
        scaler.scale(loss * float("inf") if skipped else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        changed = any(
            method.logs()[key][name] != row[name]
            for key, row in before.items()
            for name in row.keys() & {"gamma", "multiplier"}
        )
        assert changed is not skipped, step
    if isinstance(method, er.Scheduled):
        assert method.steps == 3


def test_micro_batches_are_one_step() -> None:
    found = []
    for parts in (1, 4):
        relaxation = chain(2)
        optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
        method = er.Scheduled(relaxation, total_steps=10).attach(optimizer)
        x, y = batch()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(5):
                optimizer.zero_grad()
                for i, (a, b) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True)):
                    loss = (relaxation.model(a) - b).square().mean() / parts
                    (loss + method.penalty() if i == parts - 1 else loss).backward()
                optimizer.step()
        found.append(relaxation.model.state_dict())
        assert method.steps == 5
    for one, other in zip(found[0].values(), found[1].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=12),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 9)], [3]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("make", [ace, scheduled])
def test_learning_rate_schedulers_see_every_group(make: Callable[[Relaxation], Method], kind: str) -> None:
    relaxation = chain(2)
    optimizer = torch.optim.AdamW(relaxation.model.parameters(), lr=0.01, weight_decay=0.1)
    method = make(relaxation).attach(optimizer)
    scheduler = SCHEDULERS[kind](optimizer)
    before = method.logs()

    def after(loss: float) -> None:
        scheduler.step(loss) if kind == "plateau" else scheduler.step()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # SequentialLR of older torch is told by itself
        warnings.filterwarnings("ignore", "The epoch parameter in `scheduler.step", UserWarning)
        train(relaxation, method, [optimizer], 6, after)
    rates = {group["lr"] for group in optimizer.param_groups}
    assert len(rates) == 1
    assert rates != {0.01}
    assert all(method.logs()[key]["gamma"] != row["gamma"] for key, row in before.items())


def test_in_the_natural_order_attach_may_come_after_scheduler_and_steps() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    first = scheduled(relaxation).attach(optimizer)
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    train(relaxation, first, [optimizer], 2, lambda loss: scheduler.step())
    method = ace(relaxation).attach(optimizer)
    train(relaxation, method, [optimizer], 2)
    assert multipliers(method) != [0.0, 0.0]


# What replaces, ends or loses the hooks


def test_a_second_attach_replaces_the_first() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    first = scheduled(relaxation).attach(optimizer)
    train(relaxation, first, [optimizer], 2)
    second = ace(relaxation).attach(optimizer)
    train(relaxation, second, [optimizer], 2)
    assert first.state_dict()["steps"] == 2
    assert len(optimizer._optimizer_step_post_hooks) == 1
    with pytest.raises(MethodError, match="ACE took over"):
        first.penalty()
    other = torch.optim.SGD(relaxation.model.parameters(), lr=0.01)
    second.attach(other)
    assert not optimizer._optimizer_step_post_hooks
    train(relaxation, second, [other], 2)


def test_a_method_on_a_part_replaces_that_of_the_whole() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    whole = scheduled(relaxation).attach(optimizer)
    scheduled(relaxation_of(relaxation.model)).attach(optimizer)  # another handle, the same residuals
    with pytest.raises(MethodError, match="took over"):
        whole.penalty()


def test_step_by_hand_is_an_error_once_attached() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    for make in (ace, scheduled, er.Strict):
        with pytest.raises(MethodError, match="is attached"):
            make(relaxation).attach(optimizer).step()


def test_an_optimizer_step_without_a_penalty_is_an_error() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    method = ace(relaxation).attach(optimizer)
    with pytest.raises(MethodError, match=r"without method\.penalty\(\)"):
        optimizer.step()
    train(relaxation, method, [optimizer], 1)


def test_projection_ends_it_and_its_methods_say_so() -> None:
    for mode in ("drop", "fold"):
        relaxation = chain(2)
        optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
        method = ace(relaxation).attach(optimizer)
        train(relaxation, method, [optimizer], 2)
        er.project(relaxation.model, mode)
        assert not optimizer._optimizer_step_post_hooks
        with pytest.raises(MethodError, match="were removed"):
            method.penalty()
        with pytest.raises(MethodError, match="projected"):
            method.attach(optimizer)


def test_a_copy_of_an_optimizer_has_no_hooks_and_the_copied_method_says_so() -> None:
    for through in (copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        relaxation = chain(2)
        optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
        method = er.ACE(relaxation, dual_lr=0.1).attach(optimizer)
        train(relaxation, method, [optimizer], 2)
        model, other, twin = through((relaxation.model, optimizer, method))
        again = relaxation_of(model)
        with pytest.raises(MethodError, match=r"copy.*method\.attach\(optimizer\)"):
            loss_of(again, twin)
        assert twin.attach(other) is twin
        losses = train(again, twin, [other], 3)
        assert losses == train(relaxation, method, [optimizer], 3)
        assert multipliers(twin) == multipliers(method)


def test_a_copied_model_carries_neither_method_nor_optimizer() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    method = ace(relaxation).attach(optimizer)
    size = len(pickle.dumps(relaxation.model))
    train(relaxation, method, [optimizer], 2)
    assert len(pickle.dumps(relaxation.model)) == size
    twin = copy.deepcopy(relaxation.model)
    er.project(twin)
    train(relaxation, method, [optimizer], 1)  # projecting the copy took nothing off


def test_nothing_is_kept_alive() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    method = weakref.ref(ace(relaxation).attach(optimizer))
    gc.collect()
    assert method() is not None  # the optimizer holds it: nobody else need
    del relaxation, optimizer
    gc.collect()
    assert method() is None


# Who forgets is told


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_method_that_never_steps_is_told_once(kind: str) -> None:
    relaxation = chain(2)
    optimizer = OPTIMIZERS[kind](relaxation.model.parameters())
    method = ace(relaxation)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(relaxation, method, [optimizer], 2)
    with pytest.warns(EquirelaxWarning, match=r"ACE has not stepped yet.*\.attach\(optimizer\)") as caught:
        train(relaxation, method, [optimizer], 4)
    assert len(caught) == 1


def test_a_method_attached_to_another_optimizer_is_told() -> None:
    relaxation = chain(2)
    first, second = (torch.optim.Adam(relaxation.model.parameters(), lr=0.01) for _ in range(2))
    method = ace(relaxation).attach(first)
    train(relaxation, method, [first], 3)
    with pytest.warns(EquirelaxWarning, match="Attach it to the optimizer that trains the model now"):
        train(relaxation, method, [second], 3)


def test_projecting_what_no_method_drove_is_told() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    method = ace(relaxation)
    train(relaxation, method, [optimizer], 1)
    with pytest.warns(EquirelaxWarning, match="project: ACE never stepped"):
        er.project(relaxation.model)


@pytest.mark.filterwarnings("error")
def test_projecting_without_training_is_silent() -> None:
    for make in (ace, scheduled, er.Strict):
        relaxation = chain(2)
        method = make(relaxation)
        loss_of(relaxation, method)
        er.project(relaxation.model)


# Wrappers of the model


def test_averaged_models_average_weights_residuals_and_strengths() -> None:
    relaxation = chain(2)
    averaged = AveragedModel(relaxation.model)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    method = ace(relaxation).attach(optimizer)
    seen = []

    def after(loss: float) -> None:
        averaged.update_parameters(relaxation.model)
        seen.append({k: v.clone() for k, v in relaxation.model.state_dict().items()})

    train(relaxation, method, [optimizer], 4, after)
    copied = relaxation_of(averaged.module)
    assert all(r.gamma is not relaxation[key].gamma for key, r in copied)
    for key, value in averaged.module.state_dict().items():
        torch.testing.assert_close(value, torch.stack([state[key] for state in seen]).mean(0))
    assert not torch.equal(copied.gammas(), relaxation.gammas())
    x, _ = batch()
    with copied.strict():
        strict = averaged(x)
    er.project(averaged.module)
    torch.testing.assert_close(averaged(x), strict)
    assert len(relaxation_of(relaxation.model)) == 2
    train(relaxation, method, [optimizer], 1)


def test_accelerate_is_looked_through() -> None:
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")
    relaxation = chain(2, dtype=torch.float32)
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    model, wrapped = accelerator.prepare(relaxation.model, optimizer)
    method = ace(relaxation).attach(wrapped)
    for step in range(3):
        x, y = batch(seed=step, dtype=torch.float32)
        loss = (model(x) - y).square().mean() + method.penalty()
        wrapped.zero_grad()
        accelerator.backward(loss)
        wrapped.step()
    assert multipliers(method) != [0.0, 0.0]


class Wrapped(torch.optim.Optimizer):
    """As Accelerate's and Lightning's: it holds the optimizer that steps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


class Wrapper:
    """Holds an optimizer, and is none."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


@pytest.mark.parametrize("wrap", [Wrapped, Wrapper])
def test_a_wrapped_optimizer_is_looked_through(wrap: Callable[[torch.optim.Optimizer], Any]) -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    method = ace(relaxation).attach(wrap(optimizer))
    train(relaxation, method, [optimizer], 2)
    assert multipliers(method) != [0.0, 0.0]


def test_the_html_of_a_method_is_a_table_of_its_logs() -> None:
    relaxation = chain(2)
    shown = ace(relaxation)._repr_html_()
    assert shown.count("<tr>") == 3
    assert "mixes.0" in shown
    assert "multiplier" in shown


def test_two_phases_from_strict_to_learnt() -> None:
    relaxation = chain(2)
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=0.01)
    before = {name: p.clone() for name, p in relaxation.residual_parameters().items()}
    train(relaxation, er.Strict(relaxation).attach(optimizer), [optimizer], 2)
    assert all(torch.equal(p, before[name]) for name, p in relaxation.residual_parameters().items())
    method = ace(relaxation).attach(optimizer)
    train(relaxation, method, [optimizer], 2)
    assert not any(torch.equal(p, before[name]) for name, p in relaxation.residual_parameters().items())
    assert multipliers(method) != [0.0, 0.0]


def test_a_step_that_the_loop_leaves_out_moves_nothing() -> None:
    relaxation = chain()
    optimizer = torch.optim.Adam(relaxation.model.parameters(), lr=1e-2)
    method = scheduled(relaxation).attach(optimizer)
    train(relaxation, method, [optimizer], 3)
    method.skip()
    optimizer.step()  # a batch without a loss: no penalty before it, and no error
    assert method.steps == 3
    method.skip()  # the optimizer is not called at all, as under a GradScaler
    train(relaxation, method, [optimizer], 2)
    assert method.steps == 5
    with pytest.raises(MethodError, match="penalty"):
        optimizer.step()
