"""Irreps against e3nn: layout, signs, parity, precision."""

from __future__ import annotations

import json
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equirelax.errors import RepresentationError
from equirelax.symmetry import SE, SO, E, Group, O, Representation, from_irreps, vector
from equirelax.symmetry.exponential import rotation_vectors
from equirelax.symmetry.irreps import differences_of_turns, rotation_generators

o3 = pytest.importorskip("e3nn.o3", reason="needs e3nn")
ALL = "3x0e+2x0o+2x1o+1x1e+2x2e+1x3o+1x6e"


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def _float64() -> object:
    """e3nn reads the default dtype for its constants."""
    torch.set_default_dtype(torch.float64)
    yield None
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
def test_matrices_are_those_of_e3nn() -> None:
    g = O(3).sample(20, generator=rng(1))
    torch.testing.assert_close(from_irreps(ALL).matrix(g), o3.Irreps(ALL).D_from_matrix(g), rtol=0, atol=1e-6)
    # e3nn's own Euler angles lose half of the digits near the poles; away from them it agrees to rounding.
    alpha, beta, gamma = o3.matrix_to_angles(SO(3).sample(1, generator=rng(4)))
    exact = o3.angles_to_matrix(alpha, beta, gamma)
    expected = o3.Irreps(ALL).D_from_angles(alpha, beta, gamma)
    torch.testing.assert_close(from_irreps(ALL).matrix(exact), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("group", [SO(3), O(3), SE(3), E(3)], ids=str)
def test_signs_of_the_generators(group: Group) -> None:
    """expm(sum theta_i drho(A_i)) == rho(expm(sum theta_i A_i)) for rotations up to and beyond half a
    turn.
    """
    rep = from_irreps(ALL, group)
    theta = 2.5 * torch.randn(32, group.algebra_dim, generator=rng(2), dtype=torch.float64)
    lie = torch.einsum("bk,kij->bij", theta, rep.generators())
    torch.testing.assert_close(torch.matrix_exp(lie), rep.matrix(group.exp(theta)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("group", [SO(3), O(3), SE(3), E(3)], ids=str)
def test_the_group_law(group: Group) -> None:
    rep = from_irreps(ALL, group)
    g = group.sample(40, generator=rng(3))
    torch.testing.assert_close(
        rep.matrix(g[:20] @ g[20:]), rep.matrix(g[:20]) @ rep.matrix(g[20:]), rtol=0, atol=1e-11
    )


def test_degree_one_is_the_vector() -> None:
    g = O(3).sample(5, generator=rng())
    torch.testing.assert_close(from_irreps("1o").matrix(g), g)
    torch.testing.assert_close(from_irreps("1e").matrix(g), torch.linalg.det(g)[:, None, None] * g)
    assert torch.equal(from_irreps("1o").generators(), vector(O(3)).generators())


def test_parity() -> None:
    inversion = -torch.eye(3, dtype=torch.float64)
    signs = torch.diagonal(from_irreps("0e+0o+1o+1e+2e").matrix(inversion))
    assert signs.tolist() == [1, -1, *[-1] * 3, *[1] * 3, *[1] * 5]
    assert torch.equal(from_irreps("0o+1o").discrete()[0], -torch.eye(4, dtype=torch.float64))
    assert from_irreps("0o", SO(3)).invariant
    assert not from_irreps("0o").invariant
    assert from_irreps("4x0e", E(3)).invariant


@pytest.mark.parametrize("degree", range(9))
def test_generators_are_exact_in_float64_whatever_the_default_dtype(degree: int) -> None:
    x, y, z = rotation_generators(degree)
    torch.testing.assert_close(x @ y - y @ x, z, rtol=0, atol=1e-13)
    casimir = -(x @ x + y @ y + z @ z)
    eye = torch.eye(2 * degree + 1, dtype=torch.float64)
    torch.testing.assert_close(casimir, degree * (degree + 1) * eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.stack([x, y, z]), o3.so3_generators(degree).double(), rtol=1e-5, atol=1e-5
    )


@given(
    axis=st.tuples(*[st.floats(-1, 1) for _ in range(3)]).filter(lambda a: math.hypot(*a) > 0.1),
    angle=st.one_of(
        st.floats(0, math.pi - 1e-9), st.sampled_from([0.0, 1e-14, 1e-9, 1e-5, math.pi / 2, math.pi - 1e-9])
    ),
)
@settings(deadline=None, max_examples=25)
def test_rotation_vectors(axis: tuple[float, float, float], angle: float) -> None:
    theta = angle * torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    torch.testing.assert_close(rotation_vectors(SO(3).exp(theta)), theta, rtol=0, atol=1e-13)


@pytest.mark.parametrize("half_turn", [[1.0, -1, -1], [-1, 1.0, -1], [-1, -1, 1.0]])
def test_half_turns_and_the_identity(half_turn: list[float]) -> None:
    rep = from_irreps(ALL)
    g = torch.diag(torch.tensor(half_turn, dtype=torch.float64))
    eye = torch.eye(rep.dim, dtype=torch.float64)
    torch.testing.assert_close(rep.matrix(g) @ rep.matrix(g), eye, rtol=0, atol=1e-12)
    assert torch.equal(rep.matrix(O(3).identity()), eye)


@pytest.mark.parametrize("irreps", ["1o", "2e", "3o"])
def test_matrices_have_a_finite_gradient_at_the_identity(irreps: str) -> None:
    """Through Euler angles the gradient at the identity is NaN; here it is the generators."""
    rep = from_irreps(irreps, SO(3))
    jacobian = torch.autograd.functional.jacobian(
        lambda theta: rep.matrix(SO(3).exp(theta)), torch.zeros(3, dtype=torch.float64)
    )
    torch.testing.assert_close(jacobian.movedim(-1, 0), rep.generators(), rtol=0, atol=1e-12)


def test_features_have_the_layout_of_e3nn() -> None:
    irreps = o3.Irreps("4x0e+3x1o+2x2e")
    rep = from_irreps(irreps)
    assert rep.dim == irreps.dim
    assert list(rep.slices()) == list(irreps.slices())
    assert [m for m, _ in rep.blocks] == [4, 3, 2]
    layer = o3.Linear(irreps, irreps).double()
    g = O(3).sample(1, generator=rng(5))[0]
    x = torch.randn(6, irreps.dim, generator=rng(6), dtype=torch.float64)
    torch.testing.assert_close(layer(rep.apply(g, x)), rep.apply(g, layer(x)), rtol=0, atol=1e-6)


def test_written_form_spec_and_pickle() -> None:
    rep = from_irreps("32x0e+32x1o")
    assert repr(rep) == "32x0e+32x1o"
    assert repr(from_irreps("2x1o", SO(3))) == "2x1o[SO(3)]"
    assert rep == from_irreps(o3.Irreps("32x0e + 32x1o"))
    for other in (
        Representation.from_spec(json.loads(json.dumps(rep.spec()))),
        pickle.loads(pickle.dumps(rep)),
    ):
        assert other == rep
    assert rep != from_irreps("32x0e+32x1e")


def test_errors_name_what_was_expected() -> None:
    with pytest.raises(RepresentationError, match="The irreps '3x1q' cannot be read"):
        from_irreps("3x1q")
    with pytest.raises(RepresentationError, match=r"not to SO\(2\)"):
        from_irreps("1o", SO(2))


@pytest.mark.parametrize("degree", range(7))
def test_generators_without_those_of_e3nn(degree: int) -> None:
    """e3nn 0.4 has none: they are then differences of small turns, of which rounding the squares restores all digits."""
    found = differences_of_turns(degree)
    exact = found.sign() * (4 * found.square()).round().sqrt() / 2
    torch.testing.assert_close(exact, rotation_generators(degree), rtol=1e-14, atol=0)
