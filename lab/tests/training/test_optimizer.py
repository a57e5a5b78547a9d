"""The optimizer's groups and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.training.assembly import assemble, build_optimizer, build_scheduler


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
    decayed = {p.dim() > 1: found[id(p)][1] for p in (*residual, *strict)}
    assert decayed == {True: 0.1, False: 0.1 if decay_biases else 0.0}
