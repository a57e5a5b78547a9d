"""SEGNN on molecules: invariant for every degree, molecule by molecule, with the layers of the N-body network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from e3nn import o3
from equirelax_lab.models import MolecularSEGNN, fast
from equirelax_lab.models.norms import EquivariantInstanceNorm
from equirelax_lab.models.radius import radius_graph
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax.symmetry import E, positions, trivial
from equirelax.testing import ModelConformance

SIZES = (4, 1, 6)
DEGREES = [(1, 1), (1, 3), (2, 3)]


def sample(seed: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers, positions, edges and graph of three molecules; one has a single atom."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(SIZES)
    where = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    numbers = torch.tensor([1, 6, 7, 8, 9])[torch.randint(0, 5, (count,), generator=generator)]
    graph = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    return numbers, where, radius_graph(where, graph, 2.0), graph


def network(l_max: int = 2, lmax_attributes: int = 3, **changes: Any) -> MolecularSEGNN:
    torch.manual_seed(0)
    return MolecularSEGNN(8, l_max, 2, lmax_attributes, **changes)


class _Conformance(ModelConformance):
    degrees = DEGREES[0]

    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        group = E(3)
        return network(*self.degrees), sample(), (None, positions(group), None, None), trivial(group)

    def permute(self, sample: Any, generator: torch.Generator) -> tuple[Any, Callable[[Tensor], Tensor]]:
        numbers, where, edges, graph = sample
        order = torch.randperm(len(numbers), generator=generator)
        mixed = torch.randperm(edges.shape[1], generator=generator)
        return (numbers[order], where[order], order.argsort()[edges[:, mixed]], graph[order]), lambda y: y


class TestDegreeOne(_Conformance):
    degrees = (1, 1)


class TestDegreeOneAttributesThree(_Conformance):
    degrees = (1, 3)


class TestDegreeTwo(_Conformance):
    degrees = (2, 3)


PUBLISHED = {"norm": "instance", "pooling": "mean", "distances": "squared", "harmonics": "component"}
"""What ACE's code has on QM9."""


class TestPublished(_Conformance):
    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        group = E(3)
        return network(2, 3, **PUBLISHED), sample(), (None, positions(group), None, None), trivial(group)


@pytest.mark.parametrize("degrees", DEGREES)
def test_a_molecule_does_not_see_the_others(degrees: tuple[int, int]) -> None:
    numbers, where, edges, graph = sample()
    model = network(*degrees)
    together = model(numbers, where, edges, graph)
    assert together.shape == (len(SIZES), 1)
    for k in range(len(SIZES)):
        mine, near = graph == k, graph[edges[0]] == k
        alone = model(numbers[mine], where[mine], edges[:, near] - int(mine.nonzero()[0]))
        torch.testing.assert_close(alone, together[k : k + 1])


def test_joint_messages_change_nothing_but_rounding() -> None:
    model = network(1, 1)
    joint = model(*sample())
    with fast.set_enabled(False):
        torch.testing.assert_close(model(*sample()), joint)


def test_depends_on_elements_shape_and_edges() -> None:
    numbers, where, edges, graph = sample()
    model = network()
    output = model(numbers, where, edges, graph)
    other = numbers.clone()
    other[0] = 1 if numbers[0] != 1 else 6
    for changed in (
        model(other, where, edges, graph),
        model(numbers, where * 1.1, edges, graph),
        model(numbers, where, edges[:, 1:], graph),
    ):
        assert abs(float((changed - output)[0].detach())) > 1e-6


def test_pooling() -> None:
    numbers, where, edges, graph = sample()
    summed, mean = network(), network(pooling="mean")
    mean.load_state_dict(summed.state_dict())
    seen: list[Tensor] = []
    for model in (summed, mean):
        model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(numbers, where, edges, graph)
    torch.testing.assert_close(seen[0] / torch.tensor(SIZES)[:, None], seen[1])


def test_instance_norm_channel_by_channel_of_every_molecule() -> None:
    torch.manual_seed(1)
    irreps = o3.Irreps("3x0e+2x1o")
    norm = EquivariantInstanceNorm(irreps).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    _, _, _, graph = sample()
    x = torch.randn(len(graph), irreps.dim, dtype=torch.float64)
    expected = torch.empty_like(x)
    for molecule in range(len(SIZES)):
        mine = graph == molecule
        for channel in range(3):
            column = x[mine, channel] - x[mine, channel].mean()
            scale = norm.weight[channel] / (column.square().mean() + 1e-5).sqrt()
            expected[mine, channel] = column * scale + norm.bias[channel]
        for channel in range(2):
            columns = slice(3 + 3 * channel, 6 + 3 * channel)
            scale = norm.weight[3 + channel] / (x[mine, columns].square().mean() + 1e-5).sqrt()
            expected[mine, columns] = x[mine, columns] * scale
    torch.testing.assert_close(norm(x, graph), expected)


def test_messages_read_squared_distances_and_component_harmonics() -> None:
    _, where, edges, _ = sample()
    made = network(2, 3, **PUBLISHED)._edges(where, edges)
    relative = where[edges[0]] - where[edges[1]]
    torch.testing.assert_close(made.scalars[:, 0], (relative**2).sum(1))
    expected = o3.spherical_harmonics([0, 1, 2, 3], relative, normalize=True, normalization="component")
    torch.testing.assert_close(made.attributes, expected)
    small = network(1, 1, harmonics="component")
    joint = small(*sample())
    with fast.set_enabled(False):
        torch.testing.assert_close(small(*sample()), joint)


def test_papers_size() -> None:
    model = MolecularSEGNN()
    assert len(model.layers) == 5
    assert model.hidden == o3.Irreps("36x0e+36x1o+36x2e")
    assert model.attributes.lmax == 3
    assert str(model.layers[0].message_1.irreps_in1.simplify()[-1]) == "1x0e"  # the distance


def test_no_atoms() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    out = network()(nothing, torch.zeros(0, 3), torch.zeros(2, 0, dtype=torch.long), nothing)
    assert out.shape == (0, 1)


def test_unknown_elements_and_impossible_settings() -> None:
    numbers, where, edges, graph = sample()
    numbers[2] = 17
    with pytest.raises(RepresentationError, match=r"\[17\]"):
        network()(numbers, where, edges, graph)
    assert network(elements=(1, 6, 7, 8, 9, 17))(numbers, where, edges, graph).shape == (3, 1)
    numbers[2] = 400
    with pytest.raises(RepresentationError, match=r"\[400\]"):
        network()(numbers, where, edges, graph)
    for wrong in (
        {"layers": 0},
        {"lmax_attributes": 0},
        {"pooling": "max"},
        {"norm": "batch"},
        {"distances": "cubed"},
        {"harmonics": "norm"},
        {"elements": ()},
        {"elements": (1, 1)},
        {"elements": (0, 1)},
        {"elements": (1, 119)},
    ):
        with pytest.raises(RepresentationError, match="MolecularSEGNN"):
            MolecularSEGNN(8, **wrong)  # type: ignore[arg-type]
