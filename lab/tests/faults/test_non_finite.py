"""NaN, infinity and explosions: the run stops, names where they began, and keeps its best state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.tasks.nbody import NBodyTask
from equirelax_lab.training.checkpoint import load_run, read_run, read_state
from equirelax_lab.training.divergence import EXPLODED, Divergence, finite_weights
from equirelax_lab.training.folder import BEST, LAST, METRICS, RESULT, read_table
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.non_finite import first_non_finite, largest_gain
from equirelax_lab.training.objective import Objective
from equirelax_lab.training.run import train
from fault_ledger import Ledger
from torch import Tensor, nn

from equirelax.errors import NonFiniteError

QUIET = Machine(progress=False, tensorboard=False)
NAN, EXPLOSION = "NaN or infinity in training", "exploding loss"
STEPS = 3
"""Steps per epoch: 48 samples in batches of 20."""
Config = Callable[..., Any]


class Planted(nn.Module):
    """The identity that damages its value or gradient in training, from call `start` on."""

    def __init__(self, kind: str, start: int) -> None:
        super().__init__()
        self.kind, self.start, self.calls = kind, start, 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.calls += 1
        if self.calls <= self.start:
            return x
        if self.kind == "value":
            return x / torch.zeros((), dtype=x.dtype)
        if self.kind == "gradient":
            return x + (x - x.detach()).abs().sum().sqrt()  # 0 forwards, infinity times 0 backwards
        return x * 1e5


def plant(monkeypatch: pytest.MonkeyPatch, kind: str, start: int) -> None:
    """Put a `Planted` behind the embedding of every network that is built afterwards."""
    build = NBodyTask.build_model

    def planted(task: NBodyTask) -> nn.Module:
        model = build(task)
        assert isinstance(model.embedding, nn.Module)
        model.embedding = nn.Sequential(model.embedding, Planted(kind, start))
        return model

    monkeypatch.setattr(NBodyTask, "build_model", planted)


def check_steps(monkeypatch: pytest.MonkeyPatch, every_step: bool) -> None:
    """Check every step, or, as on a GPU or with several processes, none."""
    init = Divergence.__init__
    monkeypatch.setattr(Divergence, "__init__", lambda self, objective, _: init(self, objective, every_step))


def failure(ledger: Ledger, fault: str, config: Any, folder: Path, root: Path, words: tuple[str, ...]) -> str:
    """Train a run that must fail, and record it; return its message, which must contain the given words."""
    message = ""
    try:
        train(config, folder, root, machine=QUIET)
    except NonFiniteError as error:
        message = str(error)
    lacking = [word for word in words if word not in message]
    ledger.note(fault, survived=bool(message) and not lacking)
    assert message, "the run went on"
    assert not lacking, message
    assert not (folder / RESULT).exists()
    return message


@pytest.mark.parametrize("method", ["strict", "scheduled", "ace"])
@pytest.mark.parametrize(
    ("kind", "first"), [("value", "loss is nan"), ("gradient", "gradient is not finite")]
)
def test_the_layer_and_the_step_are_named(
    method: str, kind: str, first: str, tiny_root: Path, tiny_config: Config, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, ledger: Ledger,
) -> None:  # fmt: skip
    plant(monkeypatch, kind, start=2 * STEPS + 1)
    config = tiny_config(method, "egnn", validate_every=1, checkpoint_every=1)
    words = ("step 2 of epoch 3", "'embedding.1' (Planted)", first.split()[-1], "Lower learning_rate", LAST)
    message = failure(ledger, NAN, config, tmp_path, tiny_root, words)
    assert "the state after epoch 2" in message
    stored = read_run(tmp_path / LAST)
    assert stored.epochs == 2
    assert all(bool(torch.isfinite(t).all()) for t in stored.weights.values() if t.is_floating_point())
    assert finite_weights(load_run(tmp_path / BEST, tiny_root).model)
    assert len(read_table(tmp_path / METRICS)) == 2


@pytest.mark.parametrize("every_step", [True, False])
def test_steps_are_counted_and_not_the_parts_of_their_batches(
    every_step: bool, tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_steps(monkeypatch, every_step)
    plant(monkeypatch, "value", start=2 * 2)  # calls in both parts of the first two steps
    with pytest.raises(NonFiniteError, match="step 3 of epoch 1"):
        train(tiny_config("strict", "egnn"), tmp_path, tiny_root, machine=replace(QUIET, accumulate=2))


def test_what_was_best_is_written_where_no_checkpoint_was_due(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    plant(monkeypatch, "value", start=2 * STEPS)
    config = tiny_config("strict", "egnn", validate_every=1, checkpoint_every=10)
    words = (BEST, "the best weights, of epoch", "step 1 of epoch 3")
    message = failure(ledger, NAN, config, tmp_path, tiny_root, words)
    assert LAST not in message
    assert not (tmp_path / LAST).exists()
    assert finite_weights(load_run(tmp_path / BEST, tiny_root).model)


def test_a_run_that_fails_in_its_first_epoch_says_that_nothing_was_saved(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    plant(monkeypatch, "value", start=0)
    words = ("step 1 of epoch 1", "Nothing was saved")
    failure(ledger, NAN, tiny_config("ace", "egnn"), tmp_path, tiny_root, words)
    assert not (tmp_path / BEST).exists()


def test_a_learning_rate_that_is_far_too_large(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, ledger: Ledger
) -> None:
    for rate in (1e30, 1e15, 1e8):
        config = tiny_config("ace", learning_rate=rate)
        failure(ledger, NAN, config, tmp_path / f"{rate}", tiny_root, ("It begins in",))


def test_an_explosion_names_the_layer_that_amplifies(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    plant(monkeypatch, "explosion", start=STEPS)
    config = tiny_config("strict", "egnn", validate_every=1, checkpoint_every=1)
    words = ("exploded", "epoch 2", "amplifies most: 'embedding.1' (Planted)", "the state after epoch 1")
    failure(ledger, EXPLOSION, config, tmp_path, tiny_root, words)


def test_an_explosion_in_the_first_epoch_is_no_measure_of_itself(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    plant(monkeypatch, "explosion", start=1)
    words = ("exploded", "epoch 1", "amplifies most: 'embedding.1' (Planted)", "Nothing was saved")
    failure(ledger, EXPLOSION, tiny_config("strict", "egnn"), tmp_path, tiny_root, words)


def test_the_loss_at_the_start_is_remembered_by_a_resumed_run(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a run that is resumed after its loss has grown would compare with the large loss."""
    losses: list[float] = []
    forward = Objective.forward

    def noted(self: Objective, *arguments: Any) -> tuple[Tensor, Tensor]:
        loss, terms = forward(self, *arguments)
        losses.append(float(loss.detach()))
        return loss, terms

    monkeypatch.setattr(Objective, "forward", noted)
    config = tiny_config("strict", "egnn", epochs=2, validate_every=1, checkpoint_every=1)
    train(config, tmp_path, tiny_root, machine=QUIET)
    assert len(losses) == 2 * STEPS
    assert read_state(tmp_path / LAST)["first_loss"] == losses[0]


def test_without_a_look_at_every_step_the_epoch_end_notices(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    """As on accelerators and with several processes: no state that is not finite is saved."""
    check_steps(monkeypatch, False)
    config = tiny_config("ace", "egnn", validate_every=1, checkpoint_every=1)
    words = ("nan in step 2 of epoch 2", "It begins in", "the state after epoch 1")
    with monkeypatch.context() as patch:
        plant(patch, "value", start=STEPS + 1)
        failure(ledger, NAN, config, tmp_path / "value", tiny_root, words)
    plant(monkeypatch, "gradient", start=2 * STEPS - 1)  # in an epoch's last step: all its losses are finite
    words = ("A weight is not finite at the end of epoch 2", "the state after epoch 1")
    failure(ledger, NAN, config, tmp_path / "gradient", tiny_root, words)
    for folder in ("value", "gradient"):
        assert finite_weights(load_run(tmp_path / folder / LAST, tiny_root).model)


def test_data_that_is_not_finite_is_told_from_a_layer(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    load = NBodyTask.load

    def spoilt(task: NBodyTask, split: Any) -> Any:
        found = load(task, split)
        found.velocities[0, 0, 0] = math.nan
        return found

    monkeypatch.setattr(NBodyTask, "load", spoilt)
    words = ("the model itself", "check the data")
    failure(ledger, NAN, tiny_config("strict", "egnn"), tmp_path, tiny_root, words)


class Root(nn.Module):
    """x plus the root of 0, which is finite, but whose gradient is not."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x.detach()).abs().sum().sqrt()


class Masked(nn.Module):
    """Softmax over scores of which some are minus infinity, as in masked attention."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(torch.cat([x, torch.full_like(x, -math.inf)], -1))[..., : x.shape[-1]]


def chain(*inner: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(*inner), nn.Linear(4, 1))


def measured(model: nn.Module, x: Tensor | None = None) -> Callable[[], Tensor]:
    given = torch.randn(5, 3) if x is None else x
    return lambda: model(given).square().mean()


@pytest.mark.parametrize(
    ("inner", "path", "what"),
    [((nn.Tanh(), Planted("value", 0)), "1.1", "output"), ((Root(), nn.Tanh()), "1.0", "gradient")],
)
def test_first_non_finite(inner: tuple[nn.Module, ...], path: str, what: str) -> None:
    model = chain(*inner)
    found = first_non_finite(model, measured(model))
    assert found is not None
    assert (found.path, found.what) == (path, what)
    assert all(p.grad is None for p in model.parameters())
    assert first_non_finite(chain(nn.Tanh()), measured(chain(nn.Tanh()))) is None


def test_weights_inputs_and_losses_that_are_not_finite() -> None:
    model = chain(nn.BatchNorm1d(4))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = first_non_finite(model, measured(model, torch.full((5, 3), math.inf)))
    assert found is not None
    assert (found.path, found.what) == ("", "input")
    x = torch.randn(5, 3)
    for loss in (lambda: model(x).sum() * math.inf, lambda: (0 * model(x)).abs().sum().sqrt()):
        found = first_non_finite(model, loss)
        assert found is not None
        assert (found.path, found.what) == ("", "loss")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        model[2].weight[0, 1] = math.nan
    found = first_non_finite(model, measured(model))
    assert found is not None
    assert (found.path, found.what, found.type) == ("2", "weight", "Linear")


def test_infinities_that_a_layer_is_meant_to_be_given_are_no_fault() -> None:
    masked = chain(Masked())
    assert first_non_finite(masked, measured(masked)) is None
    faulty = chain(Masked(), Planted("value", 0))
    found = first_non_finite(faulty, measured(faulty))
    assert found is not None
    assert found.path == "1.1"


def test_largest_gain() -> None:
    model = chain(nn.Tanh())
    with torch.no_grad():
        model[2].weight[0, 0] = 1e9
    gain = largest_gain(model, measured(model))
    assert gain is not None
    assert gain.path == "2"
    assert gain.largest_output / gain.largest_input > 1e6
    assert largest_gain(nn.Identity(), lambda: None) is None
    assert EXPLODED == 1e6
