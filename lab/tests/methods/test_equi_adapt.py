"""Equi-Adapt: exactly equivariant whatever stands behind the canonicaliser, trained together."""

from __future__ import annotations

import copy

import pytest
import torch
from equirelax_lab.models.canonical import VNCanonicalizer
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import RepresentationError
from equirelax.methods import EquiAdapted
from equirelax.symmetry import SO, Group, MatrixGroup, O, positions, vector
from equirelax.symmetry import E as Euclidean


class Classifier(nn.Module):
    """Points (batch, n, 3) to logits (batch, 5); nothing symmetric about it but the order of the points."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Linear(3, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.points(x)).amax(1))
        return logits


def clouds(batch: int = 4, n: int = 40, seed: int = 1) -> Tensor:
    return torch.randn(batch, n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adapted(group: Group, network: nn.Module, out_rep: object = None, seed: int = 0) -> EquiAdapted:
    torch.manual_seed(seed)
    canonicalizer = VNCanonicalizer(8, 2, 6, reflections=group == O(3))
    return EquiAdapted(network, canonicalizer, vector(group), out_rep).double()


def error(model: nn.Module, x: Tensor, in_rep: object, out_rep: object, group: Group) -> float:
    """Relative to the spread over the clouds, for logits that hardly differ would hide it."""

    def spread(x: Tensor) -> Tensor:
        y: Tensor = model(x)
        return y - y.mean(0)

    measured = spread if out_rep is None else model
    return er.audit(
        measured, x, in_rep, out_rep, group, samples=8, lie=False, per_layer=False
    ).before.relative


@pytest.mark.parametrize("group", [SO(3), O(3)], ids=str)
def test_exactly_invariant(group: Group) -> None:
    torch.manual_seed(0)
    network = Classifier().double()
    assert error(network.eval(), clouds(), vector(group), None, group) > 0.1
    model = adapted(group, network).eval()
    assert error(model, clouds(), vector(group), None, group) < 1e-11
    assert model(clouds()).std(0).min() > 1e-3


@pytest.mark.parametrize("group", [SO(3), O(3)], ids=str)
def test_exactly_equivariant_where_the_output_transforms(group: Group) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 6)).double()
    space = vector(group)
    model = adapted(group, network, 2 * space).eval()
    assert error(network, clouds(), space, 2 * space, group) > 0.1
    assert error(model, clouds(), space, 2 * space, group) < 1e-11


def test_float32() -> None:
    torch.manual_seed(0)
    model = adapted(SO(3), Classifier()).float().eval()
    x = clouds().float()
    report = er.audit(model, x, vector(SO(3)), None, dtype=torch.float32, lie=False, per_layer=False)
    assert report.before.relative < 1e-4


def test_in_training_mode_too() -> None:
    """Batch norm sees lengths alone."""
    model = adapted(SO(3), Classifier())
    g = SO(3).sample(4, generator=torch.Generator().manual_seed(2))
    other = copy.deepcopy(model)
    torch.testing.assert_close(model(clouds()), other(clouds() @ g.mT), rtol=1e-10, atol=1e-10)


def test_only_rotations_without_reflections() -> None:
    model = adapted(SO(3), Classifier()).eval()
    assert error(model, clouds(), vector(O(3)), None, O(3)) > 1e-2


class Upright(nn.Module):
    """No canonicaliser: the identity for every cloud."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(3, dtype=x.dtype).expand(len(x), 3, 3)


class Leaning(nn.Module):
    """A canonicaliser with a planted mistake: a pose of 90 %, 10 % upright, orthonormalised."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        q, r = torch.linalg.qr(0.9 * self.inner(x) + 0.1 * torch.eye(3, dtype=x.dtype))
        return q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)


def test_a_canonicaliser_that_is_not_equivariant_is_seen() -> None:
    torch.manual_seed(0)
    network = Classifier().double().eval()
    space = vector(SO(3))
    upright = EquiAdapted(network, Upright(), space, None)
    torch.testing.assert_close(upright(clouds()), network(clouds()))
    for wrong in (upright, EquiAdapted(network, Leaning(adapted(SO(3), network).canonicalizer), space, None)):
        assert error(wrong.eval(), clouds(), space, None, SO(3)) > 1e-3


def test_both_networks_are_trained_together() -> None:
    """Which of two clouds, at any orientation; the loss falls and the gradient reaches the canonicaliser."""
    torch.manual_seed(0)
    model = adapted(SO(3), Classifier())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    shapes = clouds(2, 30) * torch.tensor([[[1.0, 2.0, 0.5]], [[1.0, 1.0, 0.3]]])
    labels = torch.arange(8) % 2
    losses = []
    before = [p.detach().clone() for p in model.canonicalizer.parameters()]
    for step in range(60):
        g = SO(3).sample(8, generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(shapes[labels] @ g.mT), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    moved = [not torch.equal(a, b) for a, b in zip(before, model.canonicalizer.parameters(), strict=True)]
    assert all(moved)


def test_one_pose_per_node_serves_graphs() -> None:
    """A canonicaliser for flat nodes, and an output of one row per node."""

    class Largest(nn.Module):
        """Frame of the two longest of four node vectors, the same for all nodes of a system."""

        def forward(self, x: Tensor) -> Tensor:
            systems = x.view(-1, 4, 3)
            order = systems.norm(dim=2).argsort(1, descending=True)
            a, b = (systems.gather(1, order[:, i, None, None].expand(-1, 1, 3))[:, 0] for i in (0, 1))
            first = a / a.norm(dim=1, keepdim=True)
            second = b - (b * first).sum(1, keepdim=True) * first
            second = second / second.norm(dim=1, keepdim=True)
            pose = torch.stack([first, second, torch.linalg.cross(first, second)], dim=2)
            return pose.repeat_interleave(4, 0)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    space = vector(SO(3))
    model = EquiAdapted(network, Largest(), space, space)
    assert error(model, clouds(3, 4).view(12, 3), space, space, SO(3)) < 1e-12


def test_keys_and_errors() -> None:
    model = adapted(SO(3), Classifier())
    assert {name.split(".")[0] for name in model.state_dict()} == {"model", "canonicalizer"}
    place = positions(Euclidean(3))
    with pytest.raises(RepresentationError, match=r"returned shape \(4, 3, 3\); expected elements of E\(3\)"):
        EquiAdapted(Classifier().double(), model.canonicalizer, place, None)(clouds())
    with pytest.raises(RepresentationError, match="nothing transforms"):
        EquiAdapted(Classifier(), model.canonicalizer, None, None)
    with pytest.raises(RepresentationError, match="points of shape"):
        model(clouds().mT)


def test_a_finite_group_in_a_basis_that_is_not_orthogonal() -> None:
    """M4: the transpose was taken for the inverse of a pose."""
    group = MatrixGroup(None, [[[1.0, -1.0], [1.0, 0.0]]], name="hexagonal")
    space, elements = vector(group), group.elements()
    metric = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)  # what the turns leave alone
    anchor = torch.tensor([1.0, 0.3], dtype=torch.float64)

    class Nearest(nn.Module):
        """The element whose image of a fixed direction is nearest to x."""

        def forward(self, x: Tensor) -> Tensor:
            return elements[(x @ metric @ (elements @ anchor).T).argmax(-1)]

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    adapted = EquiAdapted(network, Nearest(), space, space)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert er.audit(adapted, x, space, space, per_layer=False).relative < 1e-13
