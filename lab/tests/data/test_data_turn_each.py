"""Every graph of a batch turned by a rotation of its own."""

from __future__ import annotations

import pytest
import torch
from equirelax_lab.data.augment import random_rotation, turn_each


@pytest.mark.parametrize("reflections", [False, True])
def test_every_graph_has_its_own_rotation_for_all_its_vectors(reflections: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    graph = torch.tensor([0, 0, 0, 1, 1, 2])  # of different sizes
    batch = {
        "graph": graph,
        "positions": torch.randn(6, 3, generator=generator),
        "trajectory": torch.randn(6, 4, 3, generator=generator),
        "features": torch.randn(6, 3, generator=generator),
    }
    before = {name: value.clone() for name, value in batch.items()}
    names = ("positions", "trajectory", "absent")
    turned = turn_each(batch, names, torch.Generator().manual_seed(5), reflections=reflections)
    drawn = random_rotation(
        torch.Generator().manual_seed(5), count=3, reflections=reflections, dtype=torch.float64
    )
    for node in range(6):
        g = drawn[graph[node]].float()
        torch.testing.assert_close(turned["positions"][node], g @ before["positions"][node])
        for step in range(4):
            torch.testing.assert_close(turned["trajectory"][node, step], g @ before["trajectory"][node, step])
    assert bool((torch.linalg.det(drawn) < 0).any()) is reflections
    assert torch.equal(turned["features"], before["features"])
    assert "absent" not in turned
    assert all(torch.equal(batch[name], value) for name, value in before.items())
