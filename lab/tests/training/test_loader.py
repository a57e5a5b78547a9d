"""Order and augmentation depend on seed and epoch alone; ranks share batches."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from equirelax_lab.data import NBody, NBodySet
from equirelax_lab.tasks.task import graph_batch
from equirelax_lab.training.loader import EpochLoader, epoch_seed

PLAIN, TURNED = partial(graph_batch, rotate=False), partial(graph_batch, rotate=True)


@pytest.fixture(scope="module")
def data(tiny_root: Path) -> NBodySet:
    return NBody("train", root=tiny_root)


def batches(loader: EpochLoader, epoch: int) -> list[dict[str, torch.Tensor]]:
    loader.set_epoch(epoch)
    return list(loader)


def equal(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> bool:
    return all(torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x)


def test_an_epoch_is_the_same_whatever_came_before(data: NBodySet) -> None:
    one, other = EpochLoader(data, TURNED, 20, 0), EpochLoader(data, TURNED, 20, 0)
    batches(one, 0)
    torch.rand(3)
    assert equal(batches(one, 1), batches(other, 1))
    assert not equal(batches(one, 1), batches(one, 2))
    assert not equal(batches(one, 1), batches(EpochLoader(data, TURNED, 20, 1), 1))


def test_every_sample_comes_once(data: NBodySet) -> None:
    loader = EpochLoader(data, PLAIN, 20, 0)
    found = torch.cat([batch["targets"] for batch in batches(loader, 0)])
    assert len(loader) == 3
    assert sorted(found.flatten().tolist()) == sorted(data.targets.flatten().tolist())


def test_rotation_turns_vectors_together_and_keeps_the_rest(data: NBodySet) -> None:
    turned, plain = (
        batches(EpochLoader(data, TURNED, 48, 3), 0)[0],
        batches(EpochLoader(data, PLAIN, 48, 3), 0)[0],
    )
    assert torch.equal(turned["charges"], plain["charges"])
    assert not torch.allclose(turned["positions"], plain["positions"])
    for key in ("positions", "velocities", "targets"):
        torch.testing.assert_close(
            turned[key] @ turned["targets"].T, plain[key] @ plain["targets"].T, rtol=1e-4, atol=1e-4
        )


def test_ranks_share_every_batch(data: NBodySet) -> None:
    whole = batches(EpochLoader(data, TURNED, 20, 0), 4)
    parts = [batches(EpochLoader(data, TURNED, 20, 0, rank=rank, world=2), 4) for rank in (0, 1)]
    for batch, *shares in zip(whole, *parts, strict=True):
        positions = batch["positions"].view(-1, 5, 3)
        for rank, share in enumerate(shares):
            assert torch.equal(share["positions"].view(-1, 5, 3), positions[rank::2])


def test_a_last_batch_smaller_than_the_ranks_is_left_out(data: NBodySet) -> None:
    assert len(EpochLoader(data, PLAIN, 47, 0)) == 2
    assert len(EpochLoader(data, PLAIN, 47, 0, world=2)) == 1
    assert [len(batches(EpochLoader(data, PLAIN, 47, 0, rank=rank, world=2), 0)) for rank in (0, 1)] == [1, 1]


def test_batches_that_are_too_small_for_a_rank_are_left_out(data: NBodySet) -> None:
    assert len(EpochLoader(data, PLAIN, 47, 0, smallest=2)) == 1
    assert len(EpochLoader(data, PLAIN, 45, 0, world=2, smallest=2)) == 1  # three are left: one rank gets one
    assert len(EpochLoader(data, PLAIN, 44, 0, world=2, smallest=2)) == 2
    assert len(EpochLoader(data, PLAIN, 3, 0, world=2, smallest=2)) == 0


def test_seeds_of_runs_and_epochs_do_not_collide() -> None:
    seeds = {epoch_seed(seed, epoch) for seed in range(20) for epoch in range(200)}
    assert len(seeds) == 4000
    assert max(seeds) < 2**32  # more bits than these torch's generator does not read
