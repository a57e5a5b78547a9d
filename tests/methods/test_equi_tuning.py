"""Equi-Tuning: exact over finite groups, better with more elements over others, plain in training."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing import label_free
from equirelax.errors import MethodError, RepresentationError
from equirelax.methods import EquiTuned
from equirelax.symmetry import (
    SE,
    SO,
    Cyclic,
    Dihedral,
    E,
    Group,
    Lorentz,
    MatrixGroup,
    O,
    Scaling,
    Symmetric,
    positions,
    regular,
    vector,
)


def perceptron(inputs: int, outputs: int, seed: int = 0) -> nn.Module:
    """Nothing symmetric about it."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs)).double()


def rows(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(model: nn.Module, x: Any, in_rep: Any, out_rep: Any, group: Group | None = None) -> float:
    report = er.audit(model, x, in_rep, out_rep, group, samples=8, lie=False, per_layer=False)
    return report.before.relative


@pytest.mark.parametrize("group", [Cyclic(4), Dihedral(3), Symmetric(3), O(1)], ids=str)
@pytest.mark.parametrize("out", ["vector", "regular", "invariant"])
def test_exact_over_a_finite_group(group: Group, out: str) -> None:
    space = vector(group)
    out_rep = {"vector": 2 * space, "regular": regular(group), "invariant": None}[out]
    network = perceptron(space.dim, 3 if out_rep is None else out_rep.dim)
    tuned = EquiTuned(network, space, out_rep, samples=group.order or 0)
    assert tuned.exact
    x = rows(5, space.dim)
    assert error(network, x, space, out_rep) > 1e-2
    assert error(tuned, x, space, out_rep) < 1e-13
    assert tuned.eval()(x).std() > 1e-3  # the mean has not wiped out what it predicts


def test_it_is_the_mean_over_the_group() -> None:
    group = Dihedral(4)
    space, network, x = vector(group), perceptron(2, 2), rows(3, 2)
    tuned = EquiTuned(network, space, space, samples=8).eval()
    expected = sum(network(x @ g.T) @ torch.linalg.inv(g).T for g in group.elements()) / 8
    torch.testing.assert_close(tuned(x), expected, rtol=1e-12, atol=1e-14)


def test_the_error_falls_like_the_root_of_the_number_of_elements() -> None:
    space, network, x = vector(SO(3)), perceptron(3, 3), rows(5, 3)
    errors = []
    for count in (4, 32, 256):
        tuned = EquiTuned(network, space, space, samples=count)
        errors.append(label_free(tuned, [x], space, space, samples=8).e_prime)
    assert 1.4 < errors[0] / errors[1] < 5.7
    assert 1.4 < errors[1] / errors[2] < 5.7


def test_one_element_too_few_is_not_exact() -> None:
    quarter = vector(Cyclic(4))
    partly = EquiTuned(perceptron(2, 2), quarter, quarter, samples=3)
    assert not partly.exact
    assert error(partly, rows(5, 2), quarter, quarter) > 1e-3


def test_an_equivariant_network_is_left_as_it_is() -> None:
    space = vector(SO(3))

    def scaled(x: Tensor) -> Tensor:
        return x * x.norm(dim=-1, keepdim=True)

    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scaled(x)

    x = rows(4, 3)
    tuned = EquiTuned(Network(), space, space, samples=7).eval()
    torch.testing.assert_close(tuned(x), scaled(x), rtol=1e-13, atol=1e-14)


class Two(nn.Module):
    """Several arguments and outputs: positions and numbers in, positions and numbers out."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = perceptron(4, 4)

    def forward(self, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        y = self.mix(torch.cat([x, q], dim=-1))
        return x + y[..., :3], y[..., 3:]


def test_several_arguments_and_outputs_and_rotations_of_e3() -> None:
    """Of E(3) rotations and reflections about the origin: exact under none of them with samples, but centred."""
    group = E(3)
    place = positions(group)
    tuned = EquiTuned(Two(), (place, None), (place, None), samples=6)
    assert bool((tuned.elements[:, :3, 3] == 0).all())
    assert torch.linalg.det(tuned.elements).min() < 0 < torch.linalg.det(tuned.elements).max()
    x, q = rows(5, 3), rows(5, 1, seed=2)
    found = tuned.eval()(x, q)
    moved = [Two()(x @ g[:3, :3].T, q) for g in tuned.elements]
    where = sum(y[0] @ g[:3, :3] for y, g in zip(moved, tuned.elements, strict=True)) / 6
    torch.testing.assert_close(found[0], where, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found[1], sum(y[1] for y in moved) / 6, rtol=1e-12, atol=1e-14)


def test_features_on_another_axis() -> None:
    space = er.On(vector(Cyclic(4)), 1)

    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = perceptron(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x.mT).mT

    tuned = EquiTuned(Columns(), space, space, samples=4)
    assert error(tuned, rows(3, 2, 5), space, space) < 1e-13


def test_training_sees_the_network_itself_or_fresh_elements() -> None:
    space, network, x = vector(SO(3)), perceptron(3, 3), rows(5, 3)
    plain = EquiTuned(network, space, space, samples=5)
    assert plain.training
    assert torch.equal(plain(x), network(x))
    fresh = EquiTuned(network, space, space, samples=5, training_samples=2)
    first, second = fresh(x), fresh(x)
    assert not torch.allclose(first, second)
    torch.manual_seed(4)
    third = fresh(x)
    torch.manual_seed(4)
    assert torch.equal(fresh(x), third)
    third.sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    finite = EquiTuned(perceptron(2, 2), vector(Cyclic(4)), vector(Cyclic(4)), samples=1, training_samples=4)
    assert torch.equal(finite(rows(3, 2)), finite(rows(3, 2)))  # all four


def test_evaluation_is_the_same_at_every_call_and_in_every_copy() -> None:
    space, x = vector(SO(3)), rows(5, 3)
    tuned = EquiTuned(perceptron(3, 3), space, space, samples=5, seed=3).eval()
    expected = tuned(x)
    torch.randn(3)
    assert torch.equal(tuned(x), expected)
    assert torch.equal(copy.deepcopy(tuned)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(tuned))(x), expected)
    again = EquiTuned(perceptron(3, 3, seed=7), space, space, samples=5, seed=3).eval()
    again.load_state_dict(tuned.state_dict())
    assert torch.equal(again(x), expected)
    assert all(name.startswith("model.") for name in tuned.state_dict())
    assert not torch.allclose(EquiTuned(tuned.model, space, space, samples=5, seed=4).eval()(x), expected)


def test_a_cast_of_the_model_does_not_round_the_elements() -> None:
    space = vector(SO(3))
    tuned = EquiTuned(perceptron(3, 3), space, space, samples=5).eval()
    before = tuned.elements.clone()
    assert tuned.float()(rows(2, 3).float()).dtype == torch.float32
    tuned.half().double()
    assert torch.equal(tuned.elements, before)


@pytest.mark.parametrize("group", [Scaling(), Lorentz()], ids=str)
def test_no_mean_over_what_is_not_compact(group: Group) -> None:
    with pytest.raises(MethodError, match="not compact"):
        EquiTuned(nn.Identity(), vector(group), vector(group))


def test_what_does_not_fit_is_refused() -> None:
    space, x = vector(SO(3)), rows(2, 3)
    with pytest.raises(MethodError, match="samples is 0"):
        EquiTuned(nn.Identity(), space, space, samples=0)
    with pytest.raises(RepresentationError, match=r"in_rep: .*cannot be read"):
        EquiTuned(nn.Identity(), "vector", space)
    with pytest.raises(RepresentationError, match="nothing transforms"):
        EquiTuned(nn.Identity(), None, None)
    with pytest.raises(RepresentationError, match="called with 1 arguments, but in_rep describes 2"):
        EquiTuned(Two(), (space, None), (space, None)).eval()(x)
    with pytest.raises(RepresentationError, match="returned a tuple of 2"):
        EquiTuned(Two(), (space, None), space).eval()(x, rows(2, 1))
    with pytest.raises(RepresentationError, match="features of length 3"):
        EquiTuned(nn.Identity(), space, space).eval()(rows(2, 4))
    assert SE(3).dim == 4  # a group with translations is accepted
    EquiTuned(nn.Identity(), positions(SE(3)), positions(SE(3)))


def hexagonal() -> MatrixGroup:
    """Turns by 60 degrees, in coordinates along the two axes of a hexagonal lattice: no orthogonal matrices."""
    return MatrixGroup(None, [[[1.0, -1.0], [1.0, 0.0]]], name="hexagonal")


def test_a_finite_group_in_a_basis_that_is_not_orthogonal() -> None:
    """M4: the transpose was taken for the inverse, an error of 0.74 with `exact`."""
    space = vector(hexagonal())
    tuned = EquiTuned(perceptron(2, 2), space, space)
    assert tuned.exact
    assert tuned.elements.shape == (6, 2, 2)
    assert error(tuned, rows(5, 2), space, space) < 1e-13


@pytest.mark.parametrize(
    "group",
    [SO(3), O(2), SE(3), E(2), Cyclic(5), Dihedral(3), Symmetric(4), Lorentz(), Scaling(), hexagonal()],
    ids=str,
)
def test_every_group_knows_its_inverses(group: Group) -> None:
    g = group.sample(5, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(group.dim, dtype=torch.float64).expand(5, -1, -1)
    torch.testing.assert_close(group.inverse(g) @ g, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(group.inverse(g), torch.linalg.inv(g), rtol=0, atol=1e-12)


def test_representations_as_text() -> None:
    tuned = EquiTuned(perceptron(3, 4), "1x1o", ("1x0e+1x1o",), samples=2)
    assert tuned.group == O(3)
    assert tuned.eval()(rows(2, 3)).shape == (2, 4)
