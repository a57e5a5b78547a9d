"""Groups: elements, Lie algebras, sampling, specs, names, errors."""

from __future__ import annotations

import copy
import json
import math
import pickle

import pytest
import torch

from equirelax.errors import RepresentationError
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
)

ROTATION_2D = [[[0.0, -1.0], [1.0, 0.0]]]
SWAP = [[[0.0, 1.0], [1.0, 0.0]]]
SL2 = [[[1.0, 0.0], [0.0, -1.0]], [[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]]

NAMED: list[Group] = [
    SO(2), SO(3), SO(4), O(1), O(2), O(3), SE(2), SE(3), E(1), E(2), E(3), Scaling(), Lorentz(),
    Cyclic(1), Cyclic(2), Cyclic(5), Dihedral(1), Dihedral(2), Dihedral(4),
    Symmetric(1), Symmetric(2), Symmetric(4),
]  # fmt: skip
GIVEN: list[Group] = [
    MatrixGroup(ROTATION_2D, name="turns", compact=True),
    MatrixGroup(SL2, name="SL(2)"),
    MatrixGroup(ROTATION_2D, SWAP, name="turns and swap", compact=True),
    MatrixGroup(None, SWAP, name="swap"),
]
FINITE = [g for g in NAMED + GIVEN if g.order is not None]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("group", NAMED, ids=str)
def test_samples_products_and_inverses_are_elements(group: Group) -> None:
    g = group.sample(20, generator=rng())
    assert g.shape == (20, group.dim, group.dim)
    assert group.contains(g).all()
    assert group.contains(g[:10] @ g[10:]).all()
    assert group.contains(torch.linalg.inv(g)).all()
    assert group.contains(group.identity())
    assert group.contains(group.discrete()).all()


@pytest.mark.parametrize("group", NAMED, ids=str)
def test_exponentials_of_the_algebra_are_elements(group: Group) -> None:
    k = group.algebra_dim
    coefficients = 2 * torch.rand(8, k, generator=rng(1), dtype=torch.float64) - 1
    assert group.contains(group.exp(coefficients), atol=1e-12).all()


@pytest.mark.parametrize(
    ("group", "k", "c", "order"),
    [
        (SO(2), 1, 0, None), (SO(3), 3, 0, None), (SO(4), 6, 0, None), (O(1), 0, 1, 2), (O(2), 1, 1, None),
        (O(3), 3, 1, None), (SE(2), 3, 0, None), (SE(3), 6, 0, None), (E(3), 6, 1, None),
        (Scaling(), 1, 0, None), (Lorentz(), 6, 0, None),
        (Cyclic(5), 0, 1, 5), (Dihedral(4), 0, 2, 8), (Symmetric(4), 0, 2, 24),
    ],
    ids=lambda value: str(value),
)  # fmt: skip
def test_dimensions(group: Group, k: int, c: int, order: int | None) -> None:
    assert (group.algebra_dim, group.discrete_count, group.order) == (k, c, order)
    assert group.algebra().shape == (k, group.dim, group.dim)
    assert group.discrete().shape == (c, group.dim, group.dim)
    assert group.connected == (c == 0)


@pytest.mark.parametrize("group", FINITE, ids=str)
def test_a_finite_group_is_generated_by_its_discrete_elements(group: Group) -> None:
    elements = group.elements()
    assert len(elements) == group.order
    assert torch.equal(elements[0], group.identity())
    words = {tuple(group.identity().round(decimals=6).flatten().tolist()): group.identity()}
    while True:
        longer = dict(words)
        for g in words.values():
            for h in group.discrete():
                # Adding 0 turns -0 into 0, which prints and compares the same but has another key.
                longer[tuple(((h @ g).round(decimals=6) + 0.0).flatten().tolist())] = h @ g
        if len(longer) == len(words):
            break
        words = longer
    keys = {tuple((g.round(decimals=6) + 0.0).flatten().tolist()) for g in elements}
    assert keys == set(words)


@pytest.mark.parametrize("group", [SO(3), SE(3), Lorentz()], ids=str)
def test_rotations_come_first_and_are_right_handed(group: Group) -> None:
    x, y, z = group.algebra()[:3]
    assert torch.equal(x @ y - y @ x, z)
    turn = SO(3).exp(torch.tensor([0.0, 0.0, math.pi / 2], dtype=torch.float64))
    torch.testing.assert_close(
        turn @ torch.eye(3, dtype=torch.float64)[0], torch.eye(3, dtype=torch.float64)[1]
    )


@pytest.mark.parametrize("group", [Cyclic(4), Dihedral(4)], ids=str)
def test_finite_rotations_turn_x_towards_y(group: Group) -> None:
    """Counter-clockwise, as the infinite groups do, and first among the elements and generators."""
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(group.elements()[1], quarter)
    torch.testing.assert_close(group.discrete()[0], quarter)
    torch.testing.assert_close(SO(2).exp(torch.tensor([math.pi / 2], dtype=torch.float64)), quarter)


def test_lorentz_boost_mixes_time_and_space() -> None:
    boost = Lorentz().exp(torch.tensor([0, 0, 0, 0.5, 0, 0], dtype=torch.float64))
    assert boost[0, 0].item() == pytest.approx(math.cosh(0.5), abs=1e-12)
    assert boost[0, 1].item() == pytest.approx(math.sinh(0.5), abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("family", [SO, O])
def test_haar_moments(family: type[SO] | type[O], n: int) -> None:
    """E g_ij = 0, E g_ij g_kl = d_ik d_jl / n, E (tr g)^2 = dimension of the commutant of the vectors."""
    group = family(n)
    g = group.sample(40_000, generator=rng(3))
    error = 5 / math.sqrt(len(g))
    assert g.mean(dim=0).abs().max() < error
    second = torch.einsum("aij,akl->ijkl", g, g) / len(g)
    eye = torch.eye(n, dtype=torch.float64)
    expected = torch.einsum("ik,jl->ijkl", eye, eye) / n
    planar = (family, n) == (SO, 2)
    if planar:  # rotations of the plane commute with the quarter turn J, which adds a term
        j = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        expected = expected + torch.einsum("ik,jl->ijkl", j, j) / n
    assert (second - expected).abs().max() < error
    trace = torch.diagonal(g, dim1=-2, dim2=-1).sum(dim=-1)
    assert trace.square().mean().item() == pytest.approx(2.0 if planar else 1.0, abs=0.06)


def test_half_of_the_orthogonal_group_reflects() -> None:
    determinant = torch.linalg.det(O(3).sample(10_000, generator=rng()))
    assert determinant.mean().abs() < 0.05


def test_haar_angle_distribution_of_so3() -> None:
    """The rotation angle of a uniform rotation has density (1 - cos a) / pi on [0, pi]."""
    g = SO(3).sample(40_000, generator=rng(5))
    angle = ((torch.diagonal(g, dim1=-2, dim2=-1).sum(dim=-1) - 1) / 2).clamp(-1, 1).acos()
    for a in (0.5, 1.5, 2.5):
        below = (angle < a).double().mean().item()
        assert below == pytest.approx((a - math.sin(a)) / math.pi, abs=0.012)


@pytest.mark.parametrize("group", [Cyclic(5), Dihedral(3), Symmetric(3), MatrixGroup(None, SWAP)], ids=str)
def test_finite_groups_are_sampled_uniformly(group: Group) -> None:
    assert group.order is not None
    g = group.sample(6_000, generator=rng(2))
    nearest = (g.unsqueeze(1) - group.elements()).abs().amax(dim=(-2, -1)).argmin(dim=1)
    share = torch.bincount(nearest, minlength=group.order).double() / len(g)
    assert (share - 1 / group.order).abs().max() < 0.03


def test_a_compact_matrix_group_is_sampled_nearly_uniformly() -> None:
    g = GIVEN[2].sample(20_000, generator=rng(2))
    assert g.mean(dim=0).abs().max() < 0.03
    assert torch.linalg.det(g).mean().abs() < 0.03


def test_bounded_distributions() -> None:
    s = Scaling().sample(1000, generator=rng())
    assert s.min() >= 0.5
    assert s.max() <= 2.0
    assert s.log().mean().abs() < 0.1
    shift = SE(3).sample(1000, generator=rng())[:, :3, 3]
    assert shift.abs().max() <= 1.0
    assert shift.abs().max() > 0.9
    assert Lorentz().sample(1000, generator=rng())[:, 0, 0].max() <= math.cosh(1.0) + 1e-12


@pytest.mark.parametrize("group", NAMED + GIVEN, ids=str)
def test_sampling_is_seeded_and_the_same_in_every_dtype(group: Group) -> None:
    first = group.sample(4, generator=rng(7))
    assert torch.equal(first, group.sample(4, generator=rng(7)))
    single = group.sample(4, generator=rng(7), dtype=torch.float32)
    assert single.dtype == torch.float32
    assert torch.equal(single, first.float())
    if group.order != 1:
        assert not torch.equal(group.sample(20, generator=rng(7)), group.sample(20, generator=rng(8)))
    assert group.sample(0).shape == (0, group.dim, group.dim)


def test_sampling_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    SE(3).sample(5, generator=rng())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("group", NAMED + GIVEN, ids=str)
def test_spec_pickle_and_copy(group: Group) -> None:
    again = Group.from_spec(json.loads(json.dumps(group.spec())))
    for other in (again, pickle.loads(pickle.dumps(group)), copy.deepcopy(group)):
        assert other == group
        assert hash(other) == hash(group)
        assert torch.equal(other.sample(3, generator=rng()), group.sample(3, generator=rng()))
    assert len({group, again}) == 1


def test_different_groups_are_unequal() -> None:
    assert len(set(NAMED + GIVEN)) == len(NAMED + GIVEN)
    assert SO(3) != "SO(3)"


@pytest.mark.parametrize("group", NAMED, ids=str)
def test_names_are_read_back(group: Group) -> None:
    assert Group.from_name(group.name) == group


@pytest.mark.parametrize(
    ("group", "outsider"),
    [
        (SO(3), -torch.eye(3)), (SO(2), 2 * torch.eye(2)), (O(3), torch.ones(3, 3)),
        (SE(2), 2 * torch.eye(3)),
        (Cyclic(4), torch.tensor([[1.0, 0.0], [0.0, -1.0]])), (Dihedral(3), -torch.eye(2)),
        (Symmetric(3), torch.tensor([[1.0, 1, 0], [0, 0, 1], [0, 0, 0]])), (Scaling(), -torch.eye(1)),
        (Lorentz(), -torch.eye(4)), (Lorentz(), torch.diag(torch.tensor([1.0, -1, 1, 1]))),
        (SO(3), torch.full((3, 3), math.nan)), (MatrixGroup(None, SWAP), -torch.eye(2)),
    ],
    ids=lambda value: value.name if isinstance(value, Group) else "outsider",
)  # fmt: skip
def test_outsiders_are_recognised(group: Group, outsider: torch.Tensor) -> None:
    g = torch.stack([group.identity(), outsider.double()])
    assert group.contains(g).tolist() == [True, False]
    with pytest.raises(RepresentationError, match=r"1 of 2 matrices are not elements of"):
        group.check(g)
    group.check(g[0])


def test_contains_takes_a_tolerance() -> None:
    nearly = torch.eye(3, dtype=torch.float64) * (1 + 1e-6)
    assert not SO(3).contains(nearly)
    assert SO(3).contains(nearly, atol=1e-5)
    assert SO(3).contains(SO(3).sample(5, dtype=torch.float32)).all()


def test_errors_name_what_was_expected() -> None:
    with pytest.raises(RepresentationError, match=r"\(3, 3\) matrix"):
        SO(3).contains(torch.eye(2))
    with pytest.raises(RepresentationError, match="n >= 2, got 1"):
        SO(1)
    with pytest.raises(RepresentationError, match="whole number"):
        Cyclic(2.5)  # type: ignore[arg-type]
    with pytest.raises(RepresentationError, match=r"'SO\(33'.*Did you mean 'SO\(3\)'"):
        Group.from_name("SO(33")
    with pytest.raises(RepresentationError, match="Did you mean 'Lorentz'"):
        Group.from_name("Lorenz")
    with pytest.raises(RepresentationError, match="Did you mean 'Dihedral'"):
        Group.from_spec({"type": "Dihedrl", "n": 3})
    with pytest.raises(RepresentationError, match="does not fit"):
        Group.from_spec({"type": "SO", "m": 3})
    with pytest.raises(RepresentationError, match="key 'type'"):
        Group.from_spec({"n": 3})
    with pytest.raises(RepresentationError, match="infinite"):
        SO(2).elements()
    with pytest.raises(RepresentationError, match="too many"):
        Symmetric(9).elements()
    with pytest.raises(RepresentationError, match="count must be >= 0"):
        SO(2).sample(-1)
    with pytest.raises(RepresentationError, match="dimension 3, but 2 coefficients"):
        SO(3).exp(torch.zeros(2))
    with pytest.raises(RepresentationError, match="cannot be decided"):
        GIVEN[1].contains(torch.eye(2))


@pytest.mark.parametrize(
    ("generators", "discrete", "message"),
    [
        (None, None, "give generators"),
        ([[1.0, 2.0]], None, r"shape \(count, n, n\)"),
        (ROTATION_2D, [[[1.0]]], "same n"),
        (ROTATION_2D * 2, None, "linearly dependent"),
        (SL2[1:], None, "not a Lie algebra"),
        ([[[math.nan]]], None, "NaN"),
        (None, [[[1.0, 1.0], [1.0, 1.0]]], "singular"),
    ],
)
def test_a_matrix_group_checks_its_generators(generators: object, discrete: object, message: str) -> None:
    with pytest.raises(RepresentationError, match=message):
        MatrixGroup(generators, discrete)  # type: ignore[arg-type]


def test_infinite_discrete_generators_are_noticed() -> None:
    group = MatrixGroup(None, [[[2.0]]], name="doubling")
    assert group.order is None
    assert not group.compact
    with pytest.raises(RepresentationError, match="infinite"):
        group.elements()


def test_constants_do_not_depend_on_surroundings() -> None:
    with torch.inference_mode(), torch.device("meta"):
        basis, g, group = SO(3).algebra(), O(3).sample(2), MatrixGroup(SL2)
    assert not basis.is_inference()
    assert not g.is_inference()
    assert basis.device.type == g.device.type == group.algebra().device.type == "cpu"


def test_the_exponential_of_a_single_element_is_exact_at_every_angle() -> None:
    """torch.matrix_exp of one matrix alone is off by up to 2e-10 near 0.03."""
    for angle in torch.logspace(-6, 0.5, 200, dtype=torch.float64):
        c, s = float(angle.cos()), float(angle.sin())
        turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
        coefficients = torch.stack([angle * 0, angle * 0, angle])
        torch.testing.assert_close(SO(3).exp(coefficients), turn, rtol=0, atol=1e-14)
        torch.testing.assert_close(SO(3).exp(coefficients[None])[0], turn, rtol=0, atol=1e-14)
