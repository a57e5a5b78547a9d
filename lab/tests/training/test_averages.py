"""Averaged weights, step sizes and losses on training data, each beside a slow reference, and the run that they leave alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.training import step_sizes
from equirelax_lab.training.averages import Averages
from equirelax_lab.training.checkpoint import load_run, read_state
from equirelax_lab.training.evaluation import loss_sum
from equirelax_lab.training.folder import BEST_AVERAGE, LAST, METRICS, read_table
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train
from equirelax_lab.training.step_sizes import StepSizes

from equirelax.errors import CheckpointError

QUIET = Machine(progress=False, tensorboard=False)
Config = Callable[..., Any]
DECAY = 0.7


@pytest.mark.parametrize("method", ["strict", "ace"])
def test_the_average_is_the_weighted_mean_of_every_step(
    method: str, tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """m_t = sum_s d^(t-s) w_s / sum_s d^(t-s), written out; gammas are those of the trained network."""
    history: list[dict[str, torch.Tensor]] = []
    original = Averages.update

    def noted(self: Averages) -> None:
        history.append({k: v.double().clone() for k, v in self.trained.state_dict().items()})
        original(self)

    monkeypatch.setattr(Averages, "update", noted)
    config = tiny_config(method, ema=DECAY)
    train(config, tmp_path / "run", tiny_root, machine=QUIET)
    steps = len(history)
    factors = [DECAY ** (steps - 1 - s) for s in range(steps)]
    state = read_state(tmp_path / "run" / LAST)["averages"]
    assert state["steps"] == steps > 3
    for key, value in history[-1].items():
        expected = value
        if not key.endswith("gamma"):
            expected = sum(f * step[key] for f, step in zip(factors, history, strict=True)) / sum(factors)
        assert torch.allclose(state["model"][key].double(), expected, rtol=1e-5, atol=1e-7), key


def test_a_run_is_the_same_with_and_without_an_average(
    tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    plain = train(tiny_config("ace"), tmp_path / "plain", tiny_root, machine=QUIET)
    averaged = train(tiny_config("ace", ema=DECAY), tmp_path / "averaged", tiny_root, machine=QUIET)
    assert plain is not None
    assert averaged is not None
    assert plain["test"] == averaged["test"]
    assert plain["gammas"] == averaged["gammas"]
    assert plain["averaged"] is None


def test_averaged_weights_are_selected_and_tested_on_their_own(
    tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    result = train(tiny_config("ace", ema=DECAY), tmp_path, tiny_root, machine=QUIET)
    assert result is not None
    found = result["averaged"]
    rows = read_table(tmp_path / METRICS)
    values = [float(row["averaged/projected"]) for row in rows if row["averaged/projected"]]
    assert found["val"]["projected"] == pytest.approx(min(values), rel=1e-6)
    assert found["test"] != result["test"]
    assert found["decay"] == DECAY
    assert (tmp_path / BEST_AVERAGE).exists()
    assert json.loads((tmp_path / "result.json").read_text())["averaged"] == found


def test_a_checkpoint_without_an_average_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no averaged weights"):
        Averages(torch.nn.Linear(1, 1), DECAY).load_state_dict(None)


def test_the_losses_on_training_data_are_those_of_the_last_weights(
    tiny_root: Path, tiny_config: Config, tmp_path: Path
) -> None:
    """fit/projected is the task's loss on training samples, here on all of them, computed one sample at a time."""
    train(tiny_config("ace"), tmp_path, tiny_root, machine=QUIET)
    assembly = load_run(tmp_path / LAST, tiny_root)
    data = assembly.task.load("train")
    assert assembly.relaxation is not None
    with assembly.relaxation.strict():
        single = [
            float(loss_sum(assembly.task, assembly.model, data.subset(slice(i, i + 1))))
            for i in range(len(data))
        ]
    row = read_table(tmp_path / METRICS)[-1]
    assert float(row["fit/projected"]) == pytest.approx(sum(single) / len(single), rel=1e-5)
    assert float(row["fit/relaxed"]) != float(row["fit/projected"])


def test_step_sizes_are_the_changes_of_the_weights(
    tiny_root: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With plain gradient descent a step is the learning rate times the gradient."""
    monkeypatch.setattr(step_sizes, "STEPS", 1)
    gradients: list[float] = []
    original = StepSizes.before_step

    def noted(self: StepSizes, step: int) -> None:
        flat = torch.cat([p.grad.flatten() for p in self.weights["strict"] if p.grad is not None])
        gradients.append(float(flat.square().mean().sqrt()))
        original(self, step)

    monkeypatch.setattr(StepSizes, "before_step", noted)
    train(
        tiny_config("strict", optimizer="sgd", learning_rate=0.1, weight_decay=0.0),
        tmp_path,
        tiny_root,
        machine=QUIET,
    )
    assert float(read_table(tmp_path / METRICS)[-1]["update/strict"]) == pytest.approx(
        0.1 * gradients[-1], rel=1e-3
    )
