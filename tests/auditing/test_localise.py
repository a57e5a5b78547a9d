"""Defects planted in networks without declared hidden representations: the audit must name the module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from equirelax.auditing import On, audit
from equirelax.errors import AuditError
from equirelax.symmetry import SO, Cyclic, E, O, Representation, Symmetric, positions, trivial, vector

torch.set_num_threads(1)
FLOAT64 = {"dtype": torch.float64}


class VNLinear(nn.Module):
    """(batch, channels, 3, points), the same map for every component."""

    def __init__(self, channels_in: int, channels_out: int, bias: bool = False) -> None:
        super().__init__()
        self.map = nn.Linear(channels_in, channels_out, bias=bias, **FLOAT64)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x.transpose(1, -1)).transpose(1, -1)


class VNGate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.norm(dim=2, keepdim=True))


class SwapAxes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, [1, 0, 2]]


class ComponentNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3, **FLOAT64)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(2, 3)).transpose(2, 3)


class VectorNeurons(nn.Module):
    """Vector neurons with an optional defect after the second layer."""

    def __init__(self, defect: nn.Module | None = None, centre: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.centre = centre
        self.first = VNLinear(2, 5)
        self.gate = VNGate()
        self.second = VNLinear(5, 5, bias)
        self.defect = defect or nn.Identity()
        self.third = VNLinear(10, 4)
        self.last = VNLinear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.centre:
            x = x - x.mean(dim=2, keepdim=True)  # over x, y, z instead of over points
        h = self.gate(self.first(x))
        h = torch.cat((self.defect(self.second(h)), h), dim=1)
        return self.last(self.gate(self.third(h))).mean(dim=-1)


def points() -> Tensor:
    return torch.randn(3, 2, 3, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def vectors(group: object = None) -> tuple[On, Representation]:
    rep = vector(SO(3) if group is None else group)  # type: ignore[arg-type]
    return On(rep, 2), rep


PLANTED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "LayerNorm over components": (lambda: VectorNeurons(ComponentNorm()), "defect.norm", "nothing known"),
    "swapped axes": (lambda: VectorNeurons(SwapAxes()), "defect", "axes (y, x, z)"),
    "mean over xyz": (lambda: VectorNeurons(centre=True), "", "before it calls first"),
    "bias on a vector channel": (lambda: VectorNeurons(bias=True), "second.map", "nothing known"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_defect_is_named(name: str) -> None:
    torch.manual_seed(0)
    build, path, words = PLANTED[name]
    report = audit(build(), points(), *vectors())
    assert not report.equivariant
    assert report.first_break == path
    assert words in report.localisation.first.words
    assert path in [row.path for row in report.layers if row.status == "BREAKS"]
    # What follows the defect breaks nothing: it adds no error to inputs that are transformed exactly.
    if name != "swapped axes":
        assert all(
            row.status == "passes on" and row.relative < 1e-12 for row in report.layers if row.path == "last"
        )


def test_nothing_is_named_in_a_sound_network() -> None:
    torch.manual_seed(0)
    report = audit(VectorNeurons(), points(), *vectors(O(3)))
    assert report.equivariant
    assert report.first_break is None
    assert {row.status for row in report.layers} == {"ok"}
    assert max(row.relative for row in report.layers) < 1e-14


def test_two_defects_are_both_named() -> None:
    torch.manual_seed(0)
    model = VectorNeurons(ComponentNorm())
    model.last = VNLinear(4, 1, bias=True)
    report = audit(model, points(), *vectors())
    broken = [row.path for row in report.layers if row.status == "BREAKS"]
    assert report.first_break == "defect.norm"
    assert set(broken) == {"defect.norm", "last.map"}
    assert "assuming" in next(row.note for row in report.layers if row.path == "last.map")


class Message(nn.Module):
    """An E(3)-equivariant message layer that adds a multiple of an edge vector."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar = nn.Sequential(nn.Linear(3, 6, **FLOAT64), nn.SiLU(), nn.Linear(6, 1, **FLOAT64))

    def forward(self, h: Tensor, x: Tensor, edges: Tensor, edge_vector: Tensor) -> tuple[Tensor, Tensor]:
        source, target = edges
        difference = x[source] - x[target]
        squared = difference.square().sum(-1, keepdim=True)
        weight = self.scalar(torch.cat((h[source], h[target], squared), -1))
        moved = torch.zeros_like(x).index_add(0, target, weight * (difference + edge_vector))
        return h + torch.zeros_like(h).index_add(0, target, weight.tanh()), x + moved


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Message() for _ in range(3))

    def forward(self, h: Tensor, x: Tensor, edges: Tensor, edge_vector: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            h, x = layer(h, x, edges, edge_vector)
        return h, x


def graph() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    source, target = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    edges = torch.stack((source[source != target], target[source != target]))
    return h, x, edges, torch.randn(30, 3, generator=generator, dtype=torch.float64)


def test_forgotten_edge_attribute() -> None:
    """The edge vectors are declared invariant: the report names the first layer that uses them, and shows why."""
    torch.manual_seed(0)
    group = E(3)
    right = audit(Graph(), graph(), (None, positions(group), None, vector(group)), (None, positions(group)))
    assert right.equivariant
    wrong = audit(Graph(), graph(), (None, positions(group), None, None), (None, positions(group)))
    assert wrong.first_break == "layers.0"
    assert "position" in wrong.localisation.first.words
    assert "invariant" in wrong.localisation.first.words
    declared = audit(
        Graph(),
        graph(),
        (None, positions(group), None, None),
        (None, positions(group)),
        layer_reps={"layers.*[0-9]": ((None, positions(group), None, vector(group)), None)},
    )
    assert declared.first_break == ""  # the model hands the layer what is not a vector
    assert "argument 3 transforms as invariant, though declared" in declared.localisation.first.words


def test_reflections_alone() -> None:
    """A cross product keeps rotations and breaks reflections: seen under O(3), not under SO(3)."""

    class Cross(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cross(x[..., 0, :], x[..., 1, :], dim=-1) + x[..., 2, :]

    model = nn.Sequential(Cross(), nn.Identity())
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    assert audit(model, x, vector(SO(3)), vector(SO(3))).equivariant
    report = audit(model, x, vector(O(3)), vector(O(3)))
    assert report.first_break == "0"
    assert report.before.components["proper"] < 1e-14 < 0.1 < report.before.components["with reflection"]
    assert "reflection" in report.worst.description
    assert report.lie.relative < 1e-14
    assert any("reflections" in note for note in report.notes)


def test_e3nn_layers_are_checked_against_their_irreps() -> None:
    o3 = pytest.importorskip("e3nn.o3")
    from equirelax.symmetry import from_irreps

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.product = o3.FullyConnectedTensorProduct("2x0e+2x1o", "1x0e+1x1o", "2x0e+1x1o+1x2e")
            self.two = o3.Linear("2x0e+1x1o+1x2e", "1x1o")

        def forward(self, x: Tensor, attribute: Tensor) -> Tensor:
            return self.two(self.product(x, attribute))

    torch.manual_seed(0)
    model = Net().double()
    irreps = from_irreps("2x0e+2x1o")
    attribute = from_irreps("1x0e+1x1o")
    x = (torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64))
    assert audit(model, x, (irreps, attribute), from_irreps("1x1o")).equivariant
    forgotten = audit(model, x, (irreps, None), from_irreps("1x1o"))
    assert forgotten.first_break == ""
    assert "before it calls product: argument 1 transforms as invariant, though declared" in str(forgotten)
    assert {row.path: row.status for row in forgotten.layers}["two"] == "passes on"

    class Broken(Net):
        def forward(self, x: Tensor, attribute: Tensor) -> Tensor:
            return self.two(self.product(x, attribute).roll(1, dims=-1))

    report = audit(Broken().double(), x, (irreps, attribute), from_irreps("1x1o"))
    assert report.first_break == ""
    assert "before it calls two" in report.localisation.first.words


def test_finite_and_permutation_groups() -> None:
    class Mix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight @ x

    torch.manual_seed(0)
    rows = On(vector(Symmetric(5)), -2)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    linear = nn.Linear(4, 4, **FLOAT64)
    assert audit(nn.Sequential(linear, nn.Tanh()), x, rows, rows).equivariant
    report = audit(nn.Sequential(linear, Mix(), nn.Tanh()), x, rows, rows)
    assert report.first_break == "1"
    assert report.lie is None
    turn = vector(Cyclic(4))
    report = audit(
        nn.Sequential(nn.Tanh(), nn.LeakyReLU()), torch.randn(6, 2, dtype=torch.float64), turn, turn
    )
    assert report.first_break == "1"


def test_layer_reps_reject_what_matches_nothing() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(AuditError, match=r"matches no module.*Did you mean '0'"):
        audit(
            nn.Sequential(nn.Identity()), x, vector(SO(3)), vector(SO(3)), layer_reps={"00": trivial(SO(3))}
        )


def test_shared_modules_and_changing_control_flow() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(2, 2, bias=False, **FLOAT64)

        def forward(self, x: Tensor) -> Tensor:
            x = self.map(x.mT).mT
            return self.map(x.abs().mT).mT

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if float(x.detach().flatten()[0]) > 0 else x * 2

    torch.manual_seed(0)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    report = audit(Twice(), x, vector(SO(3)), vector(SO(3)))
    assert report.first_break == ""
    assert "before it calls map" in report.localisation.first.words
    assert {row.call for row in report.layers if row.path == "map"} == {0, 1}
    branching = audit(Branching(), x, vector(SO(3)), vector(SO(3)))
    assert branching.first_break is None
    assert "depends on the group element" in str(branching)
