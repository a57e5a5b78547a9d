"""Guesses for features that no action explains: plain actions on feature axes, no patchwork, no batch axis."""

from __future__ import annotations

import itertools

import pytest
import torch
from equirelax_lab.models import VNPointNet
from equirelax_lab.models.vector_neurons import VNLinear
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing.actions import Atom, Feature, _cheapest, atoms_of, explain
from equirelax.symmetry import SO, O, Representation, Symmetric, trivial, vector

torch.set_num_threads(1)
GROUP = O(3)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def elements(group=GROUP) -> Tensor:  # type: ignore[no-untyped-def]
    drawn = group.sample(3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return torch.cat((drawn, group.discrete(dtype=torch.float64)))


def seen(rep: Representation, x: Tensor, noise: float, axis: int = -1) -> Feature:
    """Features x (2, ...) that transform by rep, and something else, `noise` times their size."""
    moved = torch.stack([rep.apply(g, x, axis=axis) for g in elements()])
    return Feature(x, moved + noise * x.square().mean().sqrt() * draw(*moved.shape, seed=1), elements())


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("rows", [3, 6, 7])
def test_neither_patchwork_nor_the_batch_axis(rows: int, noise: float) -> None:
    atoms = atoms_of(GROUP, [])
    for rep, name in (
        (trivial(GROUP, 16), "invariant"),
        (vector(GROUP), "vector"),
        (trivial(GROUP, 6) + 4 * vector(GROUP), "6xtrivial + 4xvector"),
    ):
        found = explain(seen(rep, draw(2, rows, rep.dim), noise), atoms, 1e-9)
        assert found.action.name == name
        assert 0.5 * noise < found.relative < 2 * noise
    found = explain(seen(vector(GROUP), draw(2, rows, 5, 3, 4), noise, axis=-2), atoms, 1e-9)
    assert found.action.name == "vector along axis -2"


def test_what_fits_is_found_on_any_axis_and_in_any_number_of_blocks() -> None:
    """Exact features have no penalty."""
    atoms = atoms_of(GROUP, [])
    mixed = (
        trivial(GROUP) + vector(GROUP) + trivial(GROUP, 2) + vector(GROUP) + trivial(GROUP) + vector(GROUP)
    )
    found = explain(seen(mixed, 1e-6 * draw(2, 4, mixed.dim), 0.0), atoms, 1e-9)
    assert found.action.name == "trivial + vector + 2xtrivial + vector + trivial + vector"
    assert found.relative < 1e-12
    x = draw(2, 3, 5)
    found = explain(seen(vector(GROUP), x, 0.0, axis=1), atoms, 1e-9)
    assert found.action.name == "vector along axis -2"
    group = Symmetric(4)
    x = draw(2, 4, 3)
    moved = torch.stack([vector(group).apply(g, x, axis=1) for g in elements(group)])
    assert (
        explain(Feature(x, moved, elements(group)), atoms_of(group, []), 1e-9).action.name
        == "vector along axis -2"
    )


def test_the_cheapest_sequence_against_all_of_them() -> None:
    """Dynamic programming against trying every sequence."""
    atoms = [Atom(rep.blocks[0][1]) for rep in (trivial(GROUP), vector(GROUP))]
    atoms.append(Atom(trivial(GROUP).blocks[0][1]))
    generator = torch.Generator().manual_seed(2)

    def sequences(size: int) -> list[list[int]]:
        if size == 0:
            return [[]]
        return [[k, *rest] for k, a in enumerate(atoms) if a.dim <= size for rest in sequences(size - a.dim)]

    def total(order: list[int], costs: list[list[float]], price: float) -> float:
        at, found = 0, price * sum(a != b for a, b in itertools.pairwise(order))
        for k in order:
            found, at = found + costs[k][at], at + atoms[k].dim
        return found

    for size in (1, 2, 3, 5, 7):
        for price in (0.0, 0.4, 3.0):
            costs = [torch.rand(max(size - a.dim + 1, 0), generator=generator).tolist() for a in atoms]
            found = [atoms.index(atom) for atom in _cheapest(atoms, costs, size, price)]
            best = min(total(order, costs, price) for order in sequences(size))
            assert total(found, costs, price) == pytest.approx(best, abs=1e-12)
    assert _cheapest(atoms, [[0.0] * 3, [0.0], [0.0] * 3], 3, 0.0) == [atoms[0]] * 3  # the first wins a tie
    assert _cheapest(atoms, [[], [], []], 0, 1.0) == []


@pytest.mark.parametrize("std", [0.05, pytest.param(0.2, marks=pytest.mark.slow)])
def test_a_relaxed_network_that_lost_its_symmetry(std: float) -> None:
    """Vector neurons on three clouds: vectors are guessed on their axes, none on the batch."""
    model = VNPointNet(classes=5, width=0.25, neighbours=4).double().eval()
    relaxation = er.relax(model)
    for parameter in relaxation.residual_parameters().values():
        nn.init.normal_(parameter, std=std)
    relaxation.set_gamma(1.0)
    report = er.audit(model, draw(3, 16, 3), vector(SO(3)), None, samples=4, lie=False)
    assert report.first_break == "conv_pos.map_to_feat"
    guessed = {row.path: (*row.inputs, *row.outputs) for row in report.layers if row.type == "VNLinear"}
    axes = {
        "conv_pos": "vector along axis -3",
        "conv1": "vector along axis -2",
        "conv3": "vector along axis -2",
    }
    for path, words in guessed.items():
        wanted = axes.get(path.split(".")[0])
        assert wanted is None or set(words) == {wanted}
    assert len(guessed) >= 10
    assert not any("axis 0" in words for names in guessed.values() for words in names)
    assert {row.path for row in report.layers if row.status == "BREAKS"} <= set(relaxation.residuals)


class Frames(nn.Module):
    """Moves vectors to a frame that is built from them but arbitrary about its axis, and back: equivariant."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        axis = nn.functional.normalize(x.sum(-2), dim=-1)  # (..., 3)
        helper = torch.eye(3).to(x)[axis.abs().argmin(-1)]
        side = nn.functional.normalize(torch.linalg.cross(axis, helper), dim=-1)
        frame = torch.stack((axis, side, torch.linalg.cross(axis, side)), -2)
        return self.inner(x, frame)


class Inner(nn.Module):
    """A map along the frame's first axis and another one across it, independent of the choice of frame."""

    def __init__(self) -> None:
        super().__init__()
        self.along, self.across = (VNLinear(4, 4) for _ in range(2))

    def forward(self, x: Tensor, frame: Tensor) -> Tensor:
        local = x @ frame.mT
        along, across = (self.along, self.across)
        keep = torch.tensor([1.0, 0.0, 0.0]).to(x)
        local = along((local * keep)[..., None]) + across((local * (1 - keep))[..., None])
        return local[..., 0] @ frame


def test_a_choice_of_frames_is_not_the_break_of_a_relaxed_network() -> None:
    """Nothing explains frames, in the strict network either; the relaxed layer breaks equivariance."""
    torch.manual_seed(0)
    model = Frames().double()
    x = draw(3, 4, 3)
    strict = er.audit(model, x, vector(SO(3)), vector(SO(3)), samples=4, lie=False)
    assert strict.equivariant
    relaxation = er.relax(model, include=["inner.across"])
    nn.init.normal_(relaxation["inner.across"].map.weight)
    relaxation.set_gamma(0.3)
    report = er.audit(model, x, vector(SO(3)), vector(SO(3)), samples=4, lie=False)
    assert report.relative > 1e-2
    assert report.first_break == "inner.across"  # and not the module around it
