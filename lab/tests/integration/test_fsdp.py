"""Fully sharded training, in a group of one process: gamma is sharded like any parameter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from test_runtime import METHODS, VectorNet, batches, turned
from torch import nn
from torch.distributed.fsdp import fully_shard

import equirelax as er


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def run(method: str, shard: bool) -> tuple[list[float], list[float], nn.Module]:
    torch.manual_seed(0)
    model = VectorNet().double()
    relaxation = er.relax(model, residual=er.Dense("default"))
    if shard:
        fully_shard(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    made = METHODS[method](relaxation).attach(optimizer)
    losses = []
    for x, y in batches():
        task = (model(x) - y).square().mean()
        loss = made.objective(task, lambda x=x, y=y: (model(turned(x)) - turned(y)).square().mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [row["gamma"] for row in made.logs().values()], model


@pytest.mark.ddp
@pytest.mark.serial
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("method", ["scheduled", "ace", "resilient", "rpp"])
def test_sharded_training_is_plain_training(method: str) -> None:
    losses, gammas, _ = run(method, shard=False)
    found, sharded, model = run(method, shard=True)
    assert found == pytest.approx(losses, rel=1e-10)
    assert sharded == pytest.approx(gammas, rel=1e-10)
    er.project(model)
    assert not any("equirelax" in name for name, _ in model.named_parameters())
