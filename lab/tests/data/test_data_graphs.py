"""Batches of whole data sets, against loops; rotations."""

from __future__ import annotations

import time

import pytest
import torch
from equirelax_lab.data import GraphSet, random_rotation
from equirelax_lab.data.graphs import complete_graph, nearest_neighbours
from hypothesis import given, settings
from hypothesis import strategies as st

from equirelax.errors import DataError


def random_set(systems: int, bodies: int, *, own_graphs: bool = False, seed: int = 0) -> GraphSet:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    positions = draw(systems, bodies, 3)
    edges = nearest_neighbours(positions, 1) if own_graphs else complete_graph(bodies)
    return GraphSet(
        positions=positions,
        velocities=draw(systems, bodies, 3),
        features=draw(systems, bodies, 2),
        targets=draw(systems, bodies, 3),
        edge_index=edges,
        edge_features=draw(systems, edges.shape[-1], 2),
        charges=draw(systems, bodies, 1),
        trajectory=draw(systems, 4, bodies, 3),
    )


@settings(deadline=None, max_examples=25)
@given(
    bodies=st.integers(2, 6),
    chosen=st.lists(st.integers(0, 6), min_size=1, max_size=9),
    own_graphs=st.booleans(),
    turned=st.sampled_from(["no", "one", "each"]),
)
def test_batch_is_the_systems_side_by_side(
    bodies: int, chosen: list[int], own_graphs: bool, turned: str
) -> None:
    data = random_set(7, bodies, own_graphs=own_graphs)
    generator = torch.Generator().manual_seed(0)
    count = {"no": None, "one": None, "each": len(chosen)}[turned]
    rotation = random_rotation(generator, count=count, reflections=True, dtype=torch.float64)
    batch = data.batch(chosen, None if turned == "no" else rotation)
    for position, system in enumerate(chosen):
        g = torch.eye(3, dtype=torch.float64)
        if turned != "no":
            g = rotation[position] if turned == "each" else rotation
        nodes = slice(position * bodies, (position + 1) * bodies)
        for name in ("positions", "velocities", "targets"):
            expected = torch.stack([g @ x for x in getattr(data, name)[system]])
            torch.testing.assert_close(batch[name][nodes], expected, rtol=0, atol=1e-14)
        paths = torch.stack([torch.stack([g @ x for x in step]) for step in data.trajectory[system]], 1)
        torch.testing.assert_close(batch["trajectory"][nodes], paths, rtol=0, atol=1e-14)
        for name in ("features", "charges"):
            assert torch.equal(batch[name][nodes], getattr(data, name)[system])
        assert (batch["graph"][nodes] == position).all()
        e = data.edge_features.shape[1]
        edges = slice(position * e, (position + 1) * e)
        own = data.edge_index[system] if own_graphs else data.edge_index
        assert torch.equal(batch["edge_index"][:, edges], own + position * bodies)
        assert torch.equal(batch["edge_features"][edges], data.edge_features[system])


def test_subset_and_to() -> None:
    data = random_set(6, 4)
    data.batch([0, 1])
    part = data.subset([4, 2]).to(dtype=torch.float32)
    assert len(part) == 2
    assert part.positions.dtype == torch.float32
    assert part.edge_index.dtype == torch.long
    assert torch.equal(part.targets, data.targets[[4, 2]].float())
    assert torch.equal(part.batch([1])["velocities"], data.velocities[2].float())
    assert len(data.subset(slice(3))) == 3


def test_shapes_are_checked() -> None:
    data = random_set(3, 4)
    with pytest.raises(DataError, match=r"targets must have the shape \(3, 4, 3\)"):
        GraphSet(
            data.positions,
            data.velocities,
            data.features,
            data.targets[:, :2],
            data.edge_index,
            data.edge_features,
        )


def test_complete_graph() -> None:
    edges = complete_graph(4)
    assert {tuple(e) for e in edges.T.tolist()} == {(i, j) for i in range(4) for j in range(4) if i != j}
    assert edges.shape == (2, 12)


def test_a_batch_costs_less_than_half_a_millisecond() -> None:
    data, indices = random_set(3000, 5), torch.arange(100)
    generator = torch.Generator().manual_seed(0)
    rotation = random_rotation(generator, dtype=torch.float64)
    data.batch(indices, rotation)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        data.batch(indices, rotation)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5e-3


@pytest.mark.parametrize("reflections", [False, True])
def test_random_rotations(reflections: bool) -> None:
    drawn = random_rotation(
        torch.Generator().manual_seed(0), count=4000, reflections=reflections, dtype=torch.float64
    )
    torch.testing.assert_close(drawn @ drawn.mT, torch.eye(3, dtype=torch.float64).expand_as(drawn))
    proper = (torch.det(drawn) > 0).double().mean().item()
    assert abs(proper - (0.5 if reflections else 1.0)) < (0.05 if reflections else 1e-9)
    assert drawn.mean(0).abs().max() < 0.05
    same = [random_rotation(torch.Generator().manual_seed(3), reflections=reflections) for _ in range(2)]
    assert torch.equal(*same)
    assert same[0].shape == (3, 3)
