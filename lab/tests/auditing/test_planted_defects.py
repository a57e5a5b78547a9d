"""Defects that users of equivariant networks report, planted in four networks: the audit names the module.

The networks: EGNN, SEGNN (e3nn features), Equiformer, and NequIP from its own package. Sources of the defects: a per-node
mean in Steerable-E3-GNN#12, a LayerNorm in Pocket2Mol#16, a swapped argument in egnn-pytorch#10, edge attributes that were
forgotten in e3nn#282 and #443, float32 constants in e3nn#325, dropout left on in equidiff#9.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from undisturbed import undisturbed

import equirelax as er
from equirelax.auditing import AuditReport
from equirelax.symmetry import E, O, positions, vector

torch.set_num_threads(1)
Defect = Callable[[Tensor], Tensor]
ROUNDED = torch.tensor([1.0, 1.0, 1.0 + 1e-6])  # a constant as float32 may have it after a few operations

# What each does to vectors (..., 3).
DEFECTS: dict[str, Defect] = {
    "mean over x, y, z": lambda v: v - v.mean(-1, keepdim=True),
    "swapped axes": lambda v: v[..., [1, 0, 2]],
    "LayerNorm over components": lambda v: nn.functional.layer_norm(v, (3,)),
    "bias": lambda v: v + 0.1,
    "nonlinearity by component": torch.tanh,
    "float32 constants": lambda v: v * ROUNDED.to(v),
    "one sign lost": lambda v: torch.cat((v[..., :2], v[..., 2:].abs()), -1),
}


class OnFeatures(nn.Module):
    """A module with a defect on the vectors of its output: entries `start` to the end of a row, or of data["key"]."""

    def __init__(self, inner: nn.Module, defect: Defect, start: int, stop: int, key: str = "") -> None:
        super().__init__()
        self.inner, self.defect, self.start, self.stop, self.key = inner, defect, start, stop, key

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs)
        features = out[self.key] if self.key else out
        vectors = features[..., self.start : self.stop].unflatten(-1, (-1, 3))
        parts = (features[..., : self.start], self.defect(vectors).flatten(-2), features[..., self.stop :])
        changed = torch.cat(parts, -1)
        return {**out, self.key: changed} if self.key else changed


class OnShift(nn.Module):
    """A layer of EGNN with a defect on how far it moves the nodes."""

    def __init__(self, inner: nn.Module, defect: Defect) -> None:
        super().__init__()
        self.inner, self.defect = inner, defect

    def forward(self, h: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        h, moved = self.inner(h, x, *rest)
        return h, x + self.defect(moved - x)


@dataclasses.dataclass
class Case:
    """A network, a sample, and how both ends transform."""

    model: nn.Module
    sample: tuple[Any, ...]
    in_rep: Any
    out_rep: Any

    def audit(self) -> AuditReport:
        return er.audit(self.model, self.sample, self.in_rep, self.out_rep, samples=2, lie=False)

    def plant(self, path: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
        """Put a module around the one at the path."""
        parent, _, name = path.rpartition(".")
        owner = self.model.get_submodule(parent)
        setattr(owner, name, wrap(owner.get_submodule(name)))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def edges(nodes: int) -> Tensor:
    return (~torch.eye(nodes, dtype=torch.bool)).nonzero().T


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """In float64, always the same."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        return build()
    finally:
        torch.set_default_dtype(torch.float32)


def egnn() -> Case:
    from equirelax_lab.models.egnn import EGNN

    model = built(lambda: EGNN(hidden=6, layers=3))
    for layer in model.layers:  # layers that move the nodes about as far as trained ones
        nn.init.normal_(layer.coordinate[-1].weight)
    group = E(3)
    sample = (draw(5, 3), draw(6, 3)[1:], draw(5, 1), edges(5))
    return Case(model, sample, (positions(group), vector(group), None, None), positions(group))


def segnn() -> Case:
    pytest.importorskip("e3nn")
    from equirelax_lab.models.segnn import SEGNN

    model = built(lambda: SEGNN(hidden="6x0e+4x1o", layers=2, centre=True))
    group = E(3)
    sample = (draw(5, 3), draw(6, 3)[1:], draw(5, 1).sign(), edges(5))
    return Case(model, sample, (positions(group), vector(group), None, None), vector(group))


def equiformer() -> Case:
    pytest.importorskip("e3nn")
    from equirelax_lab.models.equiformer import Equiformer

    model = built(
        lambda: Equiformer("8x0e+4x1o+4x2e", blocks=2, radial_width=8, basis=6, ffn_factor=2, readout=8)
    )
    numbers = torch.tensor([6, 6, 8, 1, 1, 1])
    sample = (numbers, 1.5 * draw(6, 3), torch.zeros(6, dtype=torch.long))
    return Case(model, sample, (None, positions(E(3)), None), None)


class EnergyOnly(nn.Sequential):
    """NequIP's energy."""

    def forward(self, data: dict[str, Tensor]) -> Tensor:
        return self[0](data)["total_energy"]


def nequip() -> Case:
    models = pytest.importorskip("nequip.model", reason="needs nequip: pip install '.[examples]'")
    from nequip.utils.global_state import set_global_state

    with undisturbed():
        set_global_state()
        model = models.NequIPGNNModel(
            seed=0, model_dtype="float64", r_max=9.0, type_names=["H", "C", "O"], num_layers=2, l_max=1, num_features=4,
            radial_mlp_width=8, avg_num_neighbors=5.0, per_type_energy_scales=1.0, per_type_energy_shifts=0.0,
            do_derivatives=False,
        )  # fmt: skip
    data = {
        "pos": 1.5 * draw(6, 3),
        "edge_index": edges(6),
        "atom_types": torch.tensor([1, 1, 2, 0, 0, 0]),
        "batch": torch.zeros(6, dtype=torch.long),
        "num_atoms": torch.tensor([6]),
    }
    return Case(EnergyOnly(model), (data,), ({"pos": positions(E(3))},), None)


NODES = "node_features"
# network, path of the module that gets a defect, what carries the defect
PLACES: dict[str, tuple[Callable[[], Case], str, Callable[[nn.Module, Defect], nn.Module]]] = {
    "EGNN": (egnn, "layers.1", OnShift),
    "SEGNN": (segnn, "layers.0", lambda m, defect: OnFeatures(m, defect, 6, 18)),
    "Equiformer": (equiformer, "blocks.0.attention", lambda m, defect: OnFeatures(m, defect, 8, 20)),
    "NequIP": (nequip, "0.model.func.layer0_convnet", lambda m, defect: OnFeatures(m, defect, 4, 16, NODES)),
}


QUICK = [name if name in ("EGNN", "SEGNN") else pytest.param(name, marks=pytest.mark.slow) for name in PLACES]
PLANTED = [
    (network, defect)
    if network == "EGNN" or defect == "one sign lost" or (network == "SEGNN" and defect == "bias")
    else pytest.param(network, defect, marks=pytest.mark.slow)
    for network in PLACES
    for defect in DEFECTS
]
"""`make test` plants every defect in one network and one defect in every network."""


@pytest.mark.parametrize("network", QUICK)
def test_nothing_breaks_without_a_defect(network: str) -> None:
    build, path, wrap = PLACES[network]
    case = build()
    case.plant(path, lambda m: wrap(m, lambda v: v))
    report = case.audit()
    assert report.equivariant, report
    assert report.relative < 1e-12
    assert report.first_break is None


@pytest.mark.parametrize(("network", "defect"), PLANTED)
def test_the_module_is_named(network: str, defect: str) -> None:
    build, path, wrap = PLACES[network]
    case = build()
    case.plant(path, lambda m: wrap(m, DEFECTS[defect]))
    report = case.audit()
    assert not report.equivariant
    assert report.first_break == path, report


# Defects of how modules are called, and of what they are given.


class Input(nn.Module):
    """A network behind code that prepares its positions."""

    def __init__(self, network: nn.Module, prepare: Defect) -> None:
        super().__init__()
        self.network, self.prepare = network, prepare

    def forward(self, x: Tensor, *rest: Any) -> Any:
        return self.network(self.prepare(x), *rest)


@pytest.mark.parametrize("build", [egnn, segnn])
def test_a_mean_over_the_components_of_each_node(build: Callable[[], Case]) -> None:
    """Positions minus their own mean over x, y, z instead of the mean over nodes: the code before the network."""
    case = build()
    right = dataclasses.replace(case, model=Input(case.model, lambda x: x - x.mean(-2, keepdim=True)))
    right.out_rep = vector(E(3))
    assert right.audit().equivariant
    case.model = Input(case.model, lambda x: x - x.mean(-1, keepdim=True))
    report = case.audit()
    assert report.first_break == ""
    assert (
        "before it calls network: argument 0 transforms like nothing known" in report.localisation.first.words
    )


class Unturned(nn.Module):
    """Edge attributes of which some were computed once, in another orientation, and kept."""

    def __init__(self, inner: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.inner, self.kept = inner, kept

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        out = self.inner(data)
        return {**out, "edge_attrs": torch.cat((self.kept, out["edge_attrs"][len(self.kept) :]))}


def test_edge_attributes_that_do_not_turn() -> None:
    case = nequip()
    spharm = case.model.get_submodule("0.model.func.spharm")
    kept = spharm(dict(case.sample[0]))["edge_attrs"][:10]
    case.plant("0.model.func.spharm", lambda m: Unturned(m, kept))
    report = case.audit()
    assert not report.equivariant
    assert report.first_break == "0.model.func.spharm"
    assert "output edge_attrs transforms like nothing known" in report.localisation.first.words


def test_raw_vectors_as_edge_features_of_egnn() -> None:
    """Components of vectors in the place of invariants: the first linear map mixes them into scalars."""
    from equirelax_lab.models.egnn import EGNN

    case = egnn()
    case.model = built(lambda: EGNN(hidden=6, layers=2, edge_features=3))
    case.sample = (*case.sample, draw(20, 3))
    case.in_rep = (*case.in_rep, vector(E(3)))
    report = case.audit()
    assert report.first_break == "layers.0.message.0"
    assert "vector" in report.localisation.first.words


class Swapped(nn.Module):
    """Calls a layer of EGNN with positions and velocities in each other's place."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, h: Tensor, x: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return self.inner(h, v, x, *rest)


def test_one_swapped_argument() -> None:
    """Rotations pass; translations tell positions from velocities."""
    case = egnn()
    case.plant("layers.1", Swapped)
    report = case.audit()
    assert not report.equivariant
    assert report.first_break in ("layers.1", "layers.1.inner")
    group = O(3)
    case.in_rep, case.out_rep = (vector(group), vector(group), None, None), vector(group)
    assert case.audit().equivariant


@pytest.mark.parametrize("network", QUICK)
def test_dropout_left_on(network: str) -> None:
    """Not an error of symmetry: the report says that two calls on one input differ, and still names the module."""
    build, path, wrap = PLACES[network]
    case = build()
    case.plant(path, lambda m: wrap(m, lambda v: nn.functional.dropout(v, 0.2, training=True)))
    report = case.audit()
    assert report.before.repeatability > 1e-9
    assert any("draws random numbers" in note and "dropout" in note for note in report.notes)
    assert report.first_break == path


def test_two_defects_in_one_network() -> None:
    """The first one in the order of execution, and both among the modules that break."""
    case = segnn()
    for path, name in (("layers.1", "bias"), ("layers.0", "LayerNorm over components")):
        case.plant(path, lambda m, name=name: OnFeatures(m, DEFECTS[name], 6, 18))
    report = case.audit()
    assert report.first_break == "layers.0"
    assert {"layers.0", "layers.1"} <= {row.path for row in report.layers if row.status == "BREAKS"}
