"""Relax, train and project a small network, and measure it on the way: the first part of `equirelax demo`.

The task is the force on a charge, F = q (E + v x B). Its inputs transform in three different ways under O(3).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from e3nn import o3
from e3nn.nn import Gate
from torch import Tensor, nn

import equirelax as er

IN, OUT = "1x0e + 2x1o + 1x1e", "1x1o"
"""Charge, electric field and velocity, magnetic field (a pseudovector); the force."""
SAMPLES, BATCH, EPOCHS, LEARNING_RATE = 512, 64, 60, 2e-2
MEASURED = 16
"""How often the equivariance error is measured during training."""

Step = tuple[Tensor, Tensor]


class ForceNetwork(nn.Module):
    """Predicts the force (rows, 3) from (rows, 10), equivariant to O(3)."""

    def __init__(self) -> None:
        super().__init__()
        read = f"1x0e + {IN}"
        self.gate = Gate("16x0e", [torch.tanh], "16x0e", [torch.sigmoid], "8x1o + 8x1e")
        self.pairs = o3.FullyConnectedTensorProduct(read, read, self.gate.irreps_in)
        self.force = o3.FullyConnectedTensorProduct(self.gate.irreps_out, read, OUT)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the inputs and 1 in pairs, and multiply the result with them again."""
        read = torch.cat([torch.ones_like(x[:, :1]), x], -1)
        force: Tensor = self.force(self.gate(self.pairs(read, read)), read)
        return force


def train_relaxed(
    model: nn.Module, batches: Iterable[Step], steps: int, watch: Callable[[int], None]
) -> None:
    """Train a model relaxed, and project it."""
    relaxation = er.relax(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    method = er.Scheduled(relaxation, total_steps=steps).attach(optimizer)
    for step, (x, y) in enumerate(batches):
        watch(step)
        loss = nn.functional.mse_loss(model(x), y) + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    watch(steps)
    er.project(model)


def forces(count: int, generator: torch.Generator) -> Step:
    """Draw inputs (count, 10) and their forces (count, 3)."""
    charge = torch.randint(0, 2, (count, 1), generator=generator) * 2.0 - 1
    electric, velocity, magnetic = torch.randn(3, count, 3, generator=generator)
    force = charge * (electric + torch.linalg.cross(velocity, magnetic))
    return torch.cat([charge, electric, velocity, magnetic], -1), force


def run_round_trip(seed: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """Relax a network, train it, project it, and measure before, during and after.

    Args:
        seed: Seed of the weights, the data and their order.
        epochs: Epochs of training; 8 steps each.

    Returns:
        Plain data: `stages` (name, equivariance error, test error), `course` (step, equivariance error of the relaxed network,
        gamma), `parameters` {strict, relaxed}, `same_keys` and `code`, the source of the code that was run.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    (x, y), (test_x, test_y) = forces(SAMPLES, generator), forces(SAMPLES, generator)
    model = ForceNetwork()
    keys, strict = list(model.state_dict()), _weights(model)
    steps = epochs * SAMPLES // BATCH
    stages: list[tuple[str, float, float]] = []
    course: list[tuple[int, float, float]] = []
    relaxed = strict

    def equivariance_error() -> float:
        audit = er.audit(model, test_x[:8], IN, OUT, samples=4, lie=False, per_layer=False)
        return audit.relative

    def stage(name: str) -> None:
        with torch.no_grad():
            test = nn.functional.mse_loss(model(test_x), test_y)
        stages.append((name, equivariance_error(), test.item()))

    def watch(step: int) -> None:
        nonlocal relaxed
        if step % max(steps // MEASURED, 1) == 0 or step == steps:
            relaxed = _weights(model)
            gamma = er.relaxation_of(model).gammas().max().item()
            course.append((step, equivariance_error(), gamma))
        if step == steps // 2:
            stage("relaxed, half-way through training")

    stage("as its author wrote it, untrained")
    order = (torch.randperm(SAMPLES, generator=generator).split(BATCH) for _ in range(epochs))
    train_relaxed(model, ((x[rows], y[rows]) for parts in order for rows in parts), steps, watch)
    stage("trained and projected")
    return {
        "seed": seed,
        "steps": steps,
        "learning_rate": LEARNING_RATE,
        "stages": stages,
        "course": course,
        "parameters": {"strict": strict, "relaxed": relaxed, "projected": _weights(model)},
        "same_keys": list(model.state_dict()) == keys,
        "code": inspect.getsource(train_relaxed),
    }


def _weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
