"""The optimizer's groups and the course of the learning rate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.models.fast.linear import SteerableLinear
from equirelax_lab.models.norms import EquivariantLayerNorm, NormActivation
from equirelax_lab.models.radial import RadialWeights
from equirelax_lab.training.assembly import assemble, build_optimizer, build_scheduler
from torch import nn


def rates(config: Any, root: Path) -> list[float]:
    """The learning rate of every epoch."""
    optimizer = build_optimizer(assemble(config, root))
    scheduler = build_scheduler(config, optimizer)
    assert scheduler is not None
    found = []
    for _ in range(config.training.epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
def test_a_cosine_may_wait_or_start_anew(tiny_root: Path, tiny_config: Callable[..., Any]) -> None:
    def course(**changes: Any) -> list[float]:
        values = {"epochs": 6, "learning_rate": 2.0, "schedule": "cosine", **changes}
        return rates(tiny_config("strict", **values), tiny_root)

    def falling(parts: int) -> list[float]:
        return [1 + math.cos(math.pi * k / parts) for k in range(parts)]

    assert course() == pytest.approx(falling(6))
    assert course(hold=0.5) == pytest.approx([2.0, 2.0, 2.0, *falling(3)])
    assert course(restart_epochs=3) == pytest.approx(falling(3) * 2)
    assert course(restart_epochs=2, hold=1 / 3) == pytest.approx([2.0, 2.0, *falling(2) * 2])
    assert course(restart_epochs=4, final_learning_rate=1.0) == pytest.approx(
        [1 + v / 2 for v in (falling(4) * 2)[:6]]
    )


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("decay_biases", [True, False])
def test_residuals_may_have_a_rate_of_their_own(
    optimizer: str, decay_biases: bool, tiny_root: Path, tiny_config: Callable[..., Any]
) -> None:
    changes = {
        "learning_rate": 0.5,
        "weight_decay": 0.1,
        "decay_biases": decay_biases,
        "optimizer": optimizer,
    }
    assembly = assemble(tiny_config("ace", residual_rate=0.1, **changes), tiny_root)
    relaxation = assembly.relaxation
    assert relaxation is not None
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in build_optimizer(assembly).param_groups
        for p in group["params"]
    }
    residual = list(relaxation.residual_parameters().values())
    strict = list(relaxation.strict_parameters().values())
    gammas = list(relaxation.gamma_parameters().values())
    assert len(found) == len(residual) + len(strict) + len(gammas)
    for parameters, rate in ((residual, 0.05), (strict, 0.5), (gammas, 0.5)):
        assert [found[id(p)][0] for p in parameters] == pytest.approx([rate] * len(parameters))
    assert all(found[id(p)][1] == 0 for p in gammas)
    weights = {name: p for name, p in assembly.model.named_parameters() if id(p) not in set(map(id, gammas))}
    decayed = {("bias" in name, found[id(p)][1]) for name, p in weights.items()}
    assert decayed == {(False, 0.1), (True, 0.1 if decay_biases else 0.0)}


def test_weights_of_one_dimension_decay_and_biases_and_norms_do_not(
    tiny_root: Path, tiny_config: Callable[..., Any]
) -> None:
    """As the released Equiformer decides it."""
    irreps = "4x0e+2x1o"
    model = nn.ModuleDict(
        {
            "linear": SteerableLinear(irreps, irreps),
            "norm": EquivariantLayerNorm(irreps),
            "attention": nn.MultiheadAttention(4, 2),
            "batch_norm": nn.BatchNorm1d(4),
            "activation": NormActivation(irreps),
            "radial": RadialWeights(3, 4, 2),
        }
    )
    assert dict(model.named_parameters())["linear.weight"].dim() == 1
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    config = tiny_config("strict", optimizer="adamw", learning_rate=1.0, weight_decay=0.5, decay_biases=False)
    build_optimizer(dataclasses.replace(assemble(config, tiny_root), model=model)).step()
    assert {name for name, parameter in model.named_parameters() if bool((parameter == 0.5).all())} == {
        "linear.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "activation.weight",
        "radial.weights.0",
        "radial.weights.1",
        "radial.weights.2",
    }
    kept = [p for name, p in model.named_parameters() if "bias" in name or "norm." in name]
    assert all(bool((parameter == 1).all()) for parameter in kept)
