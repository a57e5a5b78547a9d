"""The method strict-muon: the matrices of our own tensor products, and how it differs from strict training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.models import TensorProduct
from equirelax_lab.tasks.registry import TASKS, defaults
from equirelax_lab.training.assembly import assemble, build_optimizer
from equirelax_lab.training.folder import read_table
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train

from equirelax.errors import ConfigError
from equirelax.optim import Muon, matrices_of


def test_our_tensor_product_has_the_matrices_of_e3nns() -> None:
    layer = TensorProduct("4x0e+3x1o", "2x0e+1x1o", "5x0e+2x1o")
    views, flat = iter(layer.weight_views()), layer.weight.detach()
    for each in matrices_of(layer)[layer.weight]:
        assert torch.equal(each.view(flat), next(views).detach().transpose(0, 1))
    assert next(views, None) is None


@pytest.mark.parametrize(
    ("benchmark", "model"), [(name, model) for name, task in TASKS.items() for model in task.models]
)
def test_the_control_is_strict_training_but_for_the_optimiser(benchmark: str, model: str) -> None:
    strict, control = defaults(benchmark, model, "strict"), defaults(benchmark, model, "strict-muon")
    assert control.training.optimizer == "muon"
    assert (control.dataset, control.network, control.residual, control.strength) == (
        strict.dataset, strict.network, strict.residual, strict.strength,
    )  # fmt: skip
    assert control.training.epochs == strict.training.epochs
    assert control.training.augment == strict.training.augment
    if strict.training.optimizer == "sgd":
        assert control.training.learning_rate == 1e-3
    else:
        assert control.training.learning_rate == strict.training.learning_rate


def test_the_control_starts_from_the_strict_network_and_will_have_no_other_optimiser() -> None:
    config = defaults("nbody", "segnn", "strict-muon")
    control, strict = assemble(config), assemble(defaults("nbody", "segnn", "strict"))
    assert control.relaxation is None
    assert control.method is None
    both = zip(control.model.parameters(), strict.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in both)
    optimizer = build_optimizer(control)
    assert isinstance(optimizer, Muon)
    held = sum(each.stop - each.start for own in matrices_of(control.model).values() for each in own)
    assert held > 0.97 * control.strict_parameters
    with pytest.raises(ConfigError, match=r"per_method: \{strict-muon: \{optimizer: muon\}\}"):
        assemble(config.updated({"optimizer": "adam"}))


@pytest.mark.parametrize("model", ["segnn", "egnn"])
def test_the_control_learns_and_is_equivariant(
    model: str, tiny_root: Path, tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny_config("strict-muon", model, epochs=6)
    result = train(config, tmp_path, tiny_root, machine=Machine(progress=False, tensorboard=False))
    assert result is not None
    assert result["method"] == "strict-muon"
    assert result["parameters"]["strict"] == result["parameters"]["relaxed"]
    assert result["equivariance_error"]["before"] == result["equivariance_error"]["after"] < 1e-11
    losses = [float(row["train/loss"]) for row in read_table(tmp_path / "metrics.csv")]
    assert losses[-1] < losses[0]
