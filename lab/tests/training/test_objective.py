"""What a step minimises where a part of it is the projected network's loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from equirelax_lab.training.assembly import assemble
from equirelax_lab.training.loader import EpochLoader
from equirelax_lab.training.objective import Objective


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_share_of_the_projected_networks_loss(
    share: float, tiny_root: Path, tiny_config: Callable[..., Any]
) -> None:
    config = tiny_config("swing", projected_share=share, strength={"amplitude": 0.7})
    assembly = assemble(config, tiny_root, steps_per_epoch=3)
    task, model, relaxation = assembly.task, assembly.model, assembly.relaxation
    assert relaxation is not None
    with torch.no_grad():
        for parameter in relaxation.residual_parameters().values():
            parameter.normal_(0, 0.1)
    loader = EpochLoader(task.load("train"), task.train_batch, 20, 0)
    loader.set_epoch(0)
    batch = next(iter(loader))

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return {
            n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
        }

    def task_loss() -> torch.Tensor:
        return task.loss(task.predict(model, batch), batch)

    objective, (loss, _) = Objective(assembly, loader)(batch, 0, 0)
    found = gradients(objective)
    relaxed = task_loss()
    with_residuals = gradients(relaxed)
    with relaxation.strict():
        projected = task_loss()
    without = gradients(projected)
    relaxed, projected = relaxed.detach(), projected.detach()
    assert float(relaxed) != pytest.approx(float(projected), rel=1e-3)
    expected = (1 - share) * float(relaxed) + share * float(projected)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    for name, value in found.items():
        torch.testing.assert_close(value, (1 - share) * with_residuals[name] + share * without[name])
    assert all(residual.suspended == 0 for _, residual in relaxation)


def test_a_strict_network_has_one_loss(tiny_root: Path, tiny_config: Callable[..., Any]) -> None:
    def value(share: float) -> torch.Tensor:
        assembly = assemble(tiny_config("strict", projected_share=share), tiny_root)
        loader = EpochLoader(assembly.task.load("train"), assembly.task.train_batch, 20, 0)
        loader.set_epoch(0)
        found: torch.Tensor = Objective(assembly, loader)(next(iter(loader)), 0, 0)[0]
        return found

    assert torch.equal(value(0.5), value(0.0))
