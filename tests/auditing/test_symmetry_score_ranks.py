"""The symmetry score over two processes: that of one process which reads their batches in turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import AuditError, NonFiniteError

Batch = tuple[Tensor, Tensor]


def score(batches: Iterator[Batch]) -> er.auditing.SymmetryScore:
    linear = nn.Linear(3, 3, bias=False).double()
    nn.init.eye_(linear.weight)
    return er.symmetry_score(
        nn.Sequential(linear),
        batches,
        lambda m, b: (m(b[0]) - b[1]).square().sum(1),
        placement=er.Layers(declare=(er.Linear("0", "1x1o", "1x1o"),)),
    )


def samples(count: int) -> Batch:
    x = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x, x + torch.tensor([0.0, 0.0, 1.0])


def cut(data: Batch, *sizes: int) -> list[Batch]:
    return list(zip(*(part.split(list(sizes)) for part in data), strict=True))


def worker(rank: int, store: str, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    # in turn: rank 0, rank 1, rank 0, where rank 1 has no second batch
    parts = cut(samples(240), 110, 90, 40)
    own = [parts[0], parts[2]] if rank == 0 else [parts[1]]
    found: list[Any] = [score(iter(own)).to_dict()]
    found.append(score(iter([samples(240)] if rank == 0 else [])).to_dict())
    x, y = samples(8)
    try:
        score(iter([(x, y * torch.tensor(float("nan") if rank else 1.0))]))
    except (AuditError, NonFiniteError) as error:
        found.append(type(error).__name__)
    try:  # the same examples again, and not a share of each
        score(iter(cut((x, y), 5, 3)))
    except AuditError as error:
        found.append(str(error))
    queue.put((rank, found))
    dist.destroy_process_group()


@pytest.mark.ddp
@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_are_one(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=worker, args=(rank, str(tmp_path / "store"), queue)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=240) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    one = score(iter([samples(240)])).to_dict()
    assert one["whole"]["z"] > 8  # no join of two ranks may outweigh it
    for rank in (0, 1):
        for several in found[rank][:2]:
            assert several["examples"] == 240
            for name in ("score", "ratio", "size", "z"):
                assert several["layers"][0][name] == pytest.approx(one["layers"][0][name]), (rank, name)
                assert several["whole"][name] == pytest.approx(one["whole"][name]), (rank, name)
    assert [found[0][2], found[1][2]] == ["AuditError", "NonFiniteError"]
    assert all("world_size" in found[rank][3] for rank in (0, 1))
