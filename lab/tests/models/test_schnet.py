"""SchNet: PyTorch Geometric's own class with our neighbours; against the formulas; strict again after projection."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equirelax_lab.models import pyg_schnet
from equirelax_lab.models.radius import RadiusGraph, radius_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax.relaxation import project, relax
from equirelax.symmetry import E, positions, trivial
from equirelax.testing import ModelConformance

geometric = pytest.importorskip("torch_geometric.nn")
SIZES = (4, 1, 6)


def molecules(seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers (11,), positions (11, 3), graph (11,) of three molecules."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(SIZES)
    where = 2 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    numbers = torch.randint(1, 9, (count,), generator=generator)
    return numbers, where, torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))


def permuted(graph_at: int) -> Callable[..., Any]:
    """A `ModelConformance.permute` for samples whose entries are all per atom."""

    def permute(self: Any, sample: Any, generator: torch.Generator) -> tuple[Any, Callable[[Tensor], Tensor]]:
        order = torch.randperm(len(sample[graph_at]), generator=generator)
        return tuple(entry[order] for entry in sample), lambda output: output

    return permute


class TestSchNet(ModelConformance):
    permute = permuted(2)

    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        torch.manual_seed(0)
        group = E(3)
        model = pyg_schnet(hidden=8, layers=2, cutoff=3.0, gaussians=6)
        return model, molecules(), (None, positions(group), None), trivial(group)


def slow_neighbours(where: Tensor, graph: Tensor, cutoff: float) -> list[tuple[int, int]]:
    """Pairs (source, target) by loops."""
    return [
        (j, i)
        for i in range(len(where))
        for j in range(len(where))
        if i != j and graph[i] == graph[j] and float((where[i] - where[j]).norm()) <= cutoff
    ]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.floats(0.1, 4.0), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_neighbours_are_those_within_the_cutoff(sizes: list[int], cutoff: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    graph = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    where = torch.randn(len(graph), 3, generator=generator, dtype=torch.float64)
    edges = radius_graph(where, graph, cutoff)
    found = [tuple(edge) for edge in edges.T.tolist()]
    assert found == sorted(slow_neighbours(where, graph, cutoff), key=lambda edge: (edge[1], edge[0]))
    mixed = torch.randperm(len(graph), generator=generator)
    again = radius_graph(where[mixed], graph[mixed], cutoff)
    assert sorted(map(tuple, mixed[again].T.tolist())) == sorted(found)


def test_neighbours_of_nobody_and_of_atoms_in_one_place() -> None:
    assert radius_graph(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 1.0).shape == (2, 0)
    assert radius_graph(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), 1.0).shape == (2, 0)
    same = torch.zeros(3, 3, requires_grad=True)
    edges, distances = RadiusGraph(1.0)(same, torch.zeros(3, dtype=torch.long))
    assert edges.shape == (2, 6)
    distances.sum().backward()
    assert bool(torch.isfinite(same.grad).all())
    assert "cutoff=1.0" in repr(RadiusGraph(1.0))
    # a graph number that no atom has
    assert radius_graph(torch.zeros(2, 3), torch.tensor([0, 2]), 1.0).shape == (2, 0)


def test_a_position_that_is_no_number_shows_in_its_molecule_alone() -> None:
    numbers, where, graph = molecules()
    model = pyg_schnet(hidden=8, layers=1)
    where[0, 1] = torch.nan
    assert torch.isnan(model(numbers, where, graph)).tolist() == [[True], [False], [False]]


def test_distances_can_be_differentiated() -> None:
    numbers, where, graph = molecules()
    model = pyg_schnet(hidden=8, layers=2)
    assert torch.autograd.gradcheck(lambda x: model(numbers, x, graph), where.requires_grad_())


def slow_schnet(model: Any, numbers: Tensor, where: Tensor) -> Tensor:
    """Schütt et al., equations 2-6, one atom and one pair after another; one molecule."""

    def softplus(x: Tensor) -> Tensor:
        return torch.log(0.5 * torch.exp(x) + 0.5)

    spacing = model.cutoff / (model.num_gaussians - 1)
    features = [model.embedding.weight[int(z)] for z in numbers]
    for block in model.interactions:
        inner = [block.conv.lin1(h) for h in features]
        update = []
        for i in range(len(features)):
            total = torch.zeros(model.num_filters)
            for j in range(len(features)):
                distance = float((where[i] - where[j]).norm())
                if i == j or distance > model.cutoff:
                    continue
                basis = [
                    math.exp(-((distance - k * spacing) ** 2) / (2 * spacing**2))
                    for k in range(model.num_gaussians)
                ]
                filtered = block.mlp[2](softplus(block.mlp[0](torch.tensor(basis))))
                total = total + inner[j] * filtered * 0.5 * (math.cos(math.pi * distance / model.cutoff) + 1)
            update.append(block.lin(softplus(block.conv.lin2(total))))
        features = [h + u for h, u in zip(features, update, strict=True)]
    return torch.stack([model.lin2(softplus(model.lin1(h))) for h in features]).sum(0)


def test_is_the_network_of_the_paper() -> None:
    numbers, where, graph = molecules()
    torch.manual_seed(1)
    model = pyg_schnet(hidden=8, layers=3, cutoff=4.0, gaussians=7, filters=6)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    found = model(numbers, where, graph)
    for k in range(len(SIZES)):
        expected = slow_schnet(model, numbers[graph == k], where[graph == k])
        # PyG rounds log 2 to float32
        torch.testing.assert_close(found[k], expected, rtol=1e-6, atol=1e-6)


def test_sizes_of_the_papers() -> None:
    model = pyg_schnet()
    assert type(model) is geometric.SchNet
    assert (model.hidden_channels, model.num_filters, len(model.interactions)) == (64, 64, 6)
    assert (model.cutoff, model.interaction_graph.cutoff, model.num_gaussians) == (10.0, 10.0, 50)
    assert pyg_schnet(hidden=8, layers=1, readout="mean").readout.__class__.__name__ == "MeanAggregation"


@pytest.mark.parametrize(
    "wrong",
    [{"hidden": 1}, {"layers": 0}, {"cutoff": 0.0}, {"gaussians": 1}, {"filters": 0}, {"readout": "max"}],
)
def test_impossible_sizes(wrong: dict[str, Any]) -> None:
    with pytest.raises(RepresentationError, match="SchNet"):
        pyg_schnet(**wrong)


@pytest.mark.parametrize("placement", ["schnet", "schnet-centred"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projected_is_the_untouched_network_bit_for_bit(placement: str, dtype: torch.dtype) -> None:
    """Trained relaxed, projected, and then weights, keys, outputs and gradients are those of PyG's SchNet."""
    numbers, where, graph = molecules()
    where = where.to(dtype)
    model = pyg_schnet(hidden=8, layers=2).to(dtype)
    keys = list(model.state_dict())
    relaxation = relax(model, placement)
    relaxation.set_gamma(1.0)
    before = model(numbers, where, graph)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(numbers, where, graph).abs().sum().backward()
        optimizer.step()
    with relaxation.strict():
        strict = model(numbers, where, graph)
    assert not torch.equal(model(numbers, where, graph), strict)
    project(model)

    untouched = geometric.SchNet(8, 8, 2, 50, 10.0, RadiusGraph(10.0)).to(dtype)
    assert list(model.state_dict()) == list(untouched.state_dict()) == keys
    untouched.load_state_dict(model.state_dict())
    for mode in (True, False):
        outputs = [net.train(mode)(numbers, where, graph) for net in (model, untouched)]
        assert torch.equal(*outputs)
        assert torch.equal(outputs[0], strict)
    assert not torch.equal(outputs[0], before)
    gradients = []
    for net in (model, untouched):
        net.zero_grad()
        net(numbers, where, graph).sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_molecule_does_not_see_the_others() -> None:
    numbers, where, graph = molecules()
    model = pyg_schnet(hidden=8, layers=2)
    alone = [model(numbers[graph == k], where[graph == k]) for k in range(len(SIZES))]
    torch.testing.assert_close(torch.cat(alone), model(numbers, where, graph))
    assert copy.deepcopy(model)(numbers, where, graph).shape == (len(SIZES), 1)
