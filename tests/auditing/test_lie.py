"""Lie derivatives of whole models: three ways to the same numbers, and the words for elements and
generators.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from equirelax.auditing import audit
from equirelax.auditing.elements import component, describe, describe_generator
from equirelax.auditing.lie import (
    DIFFERENCES,
    DOUBLE,
    FORWARD,
    double_backward,
    finite_differences,
    forward_mode,
    lie_derivative,
)
from equirelax.auditing.samples import Case
from equirelax.symmetry import SE, SO, Cyclic, Dihedral, E, Lorentz, O, Scaling, Symmetric, positions, vector

torch.set_num_threads(1)
BIAS = torch.tensor([0.3, -0.1, 0.2], dtype=torch.float64)


def curved(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return x * v.norm(dim=-1, keepdim=True).tanh() + BIAS, (x * v).sum(-1).sin()


def test_three_ways_agree() -> None:
    torch.manual_seed(0)
    points = (torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64))
    tangents = (torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64))
    differences = functools.partial(finite_differences, unit=torch.finfo(torch.float64).eps)
    found = [way(curved, points, tangents) for way in (forward_mode, double_backward, differences)]
    for a, b, c in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(a, c, rtol=1e-8, atol=1e-8)


def test_of_a_bias_by_hand() -> None:
    """f(x) = x + b: L_A f = A (x + b) - A x = A b, independent of x."""
    group = SO(3)
    x = torch.randn(7, 3, dtype=torch.float64)
    report = lie_derivative(Case(lambda x: x + BIAS, x, vector(group), vector(group), group, torch.float64))
    for row, generator in zip(report.generators, group.algebra(), strict=True):
        assert math.isclose(row.absolute, math.sqrt(7) * float((generator @ BIAS).norm()), rel_tol=1e-12)
    assert report.method == DOUBLE
    assert report.reason == ""
    squares = sum(row.absolute**2 for row in report.generators)
    assert math.isclose(report.absolute, math.sqrt(squares), rel_tol=1e-12)


def test_translations_enter() -> None:
    group = SE(3)
    x = torch.randn(5, 3, dtype=torch.float64)
    report = lie_derivative(
        Case(lambda x: 2 * x, x, positions(group), positions(group), group, torch.float64)
    )
    by_name = {row.name: row.absolute for row in report.generators}
    assert by_name["rotation about y"] < 1e-14
    assert math.isclose(by_name["translation y"], math.sqrt(5), rel_tol=1e-12)  # t - 2 t on each of 5 points


WEIGHTS = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


class OnceOnly(torch.autograd.Function):
    """Squares with a backward that cannot be differentiated and no forward-mode rule."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return (x.square() * WEIGHTS).sum(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return 2 * x * WEIGHTS * grad.unsqueeze(-1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_fallbacks() -> None:
    group = SO(3)
    v = vector(group)
    x = torch.randn(4, 3, dtype=torch.float64)
    report = lie_derivative(Case(OnceOnly.apply, x, v, None, group, torch.float64))
    assert report.method == DIFFERENCES
    assert "JVP" in report.reason
    plain = lie_derivative(Case(lambda x: (x.square() * WEIGHTS).sum(-1), x, v, None, group, torch.float64))
    assert plain.method == DOUBLE
    for a, b in zip(report.generators, plain.generators, strict=True):
        assert math.isclose(a.absolute, b.absolute, rel_tol=1e-7)

    def detached(x: Tensor) -> Tensor:
        return x * x.detach().norm(dim=-1, keepdim=True) + x[..., :1].detach()

    hidden = lie_derivative(Case(detached, x, v, v, group, torch.float64))
    assert hidden.method == DIFFERENCES
    assert "detached" in hidden.reason
    whole = lie_derivative(
        Case(lambda x: x * x.norm(dim=-1, keepdim=True) + x[..., :1], x, v, v, group, torch.float64)
    )
    assert whole.method == DOUBLE
    for a, b in zip(hidden.generators, whole.generators, strict=True):
        assert math.isclose(a.absolute, b.absolute, rel_tol=1e-7)
    assert FORWARD != DOUBLE


def test_finite_groups_have_none() -> None:
    group = Cyclic(4)
    x = torch.randn(3, 2, dtype=torch.float64)
    assert lie_derivative(Case(torch.tanh, x, vector(group), vector(group), group, torch.float64)) is None


def rotation(degrees: float) -> Tensor:
    a = math.radians(degrees)
    return torch.tensor(
        [[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]], dtype=torch.float64
    )


def test_elements_in_words() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    assert describe(SO(3), eye) == "identity"
    assert describe(SO(3), rotation(37.2)) == "rotation by 37.2 deg about (0.00, 0.00, 1.00)"
    assert describe(SO(3), rotation(-37.2)) == "rotation by 37.2 deg about (0.00, 0.00, -1.00)"
    assert (
        describe(SO(3), rotation(180)) == "rotation by 180.0 deg about (0.00, 0.00, 1.00)"
        or describe(SO(3), rotation(180)) == "rotation by 180.0 deg about (0.00, 0.00, -1.00)"
    )
    assert describe(O(3), -eye) == "inversion"
    assert describe(O(3), -rotation(90)).endswith("with reflection (inversion)")
    assert describe(O(3), -rotation(180)).startswith("reflection in the plane normal to")
    assert component(O(3), -eye) == "with reflection"
    assert component(O(3), rotation(10)) == "proper"
    moved = torch.eye(4, dtype=torch.float64)
    moved[:3, 3] = torch.tensor([1.0, -2.0, 0.5])
    assert describe(E(3), moved) == "translation by (1.00, -2.00, 0.50)"
    moved[:3, :3] = rotation(20)
    assert (
        describe(E(3), moved)
        == "rotation by 20.0 deg about (0.00, 0.00, 1.00), then translation by (1.00, -2.00, 0.50)"
    )
    assert describe(Cyclic(4), Cyclic(4).discrete()[0]) == "rotation by 90.0 deg"
    mirror = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert describe(Dihedral(4), mirror) == "reflection across the line at 45.0 deg"
    cycle = torch.eye(4, dtype=torch.float64)[:, [1, 2, 0, 3]]
    assert describe(Symmetric(4), cycle) == "permutation (0 1 2)"
    assert describe(Scaling(), torch.tensor([[2.5]], dtype=torch.float64)) == "scaling by 2.5"


def test_boosts_in_words() -> None:
    group = Lorentz()
    boost = torch.eye(4, dtype=torch.float64)
    boost[0, 0] = boost[1, 1] = math.cosh(0.8)
    boost[0, 1] = boost[1, 0] = math.sinh(0.8)
    assert describe(group, boost) == "boost of rapidity 0.80 along (1.00, 0.00, 0.00)"
    turn = torch.eye(4, dtype=torch.float64)
    turn[1:, 1:] = rotation(30)
    assert describe(group, turn) == "rotation by 30.0 deg about (0.00, 0.00, 1.00)"
    assert describe(group, boost @ turn) == (
        "rotation by 30.0 deg about (0.00, 0.00, 1.00), then boost of rapidity 0.80 along (1.00, 0.00, 0.00)"
    )


@pytest.mark.parametrize(
    ("group", "names"),
    [
        (SO(2), {"rotation xy"}),
        (SO(3), {"rotation about x", "rotation about y", "rotation about z"}),
        (SE(2), {"rotation xy", "translation x", "translation y"}),
        (Scaling(), {"scaling"}),
        (Lorentz(), {"boost tx", "boost ty", "boost tz", "rotation xy", "rotation xz", "rotation yz"}),
    ],
    ids=lambda value: ", ".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_generators_in_words(group, names: set[str]) -> None:  # type: ignore[no-untyped-def]
    assert {describe_generator(group, a, i) for i, a in enumerate(group.algebra())} == names


def test_differences_of_a_network_that_rounds_to_float32_inside() -> None:
    """A step for float64 would drown in its rounding: the values would be some 1e-2."""

    def rounded(x: Tensor) -> Tensor:
        y = x.detach().to(torch.float32)  # so that only differences see the derivative
        return y * y.norm(dim=-1, keepdim=True).tanh()

    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = lie_derivative(Case(rounded, x, vector(SO(3)), vector(SO(3)), SO(3), torch.float64))
    assert found is not None
    assert found.method == DIFFERENCES
    assert found.relative < 1e-3


@pytest.mark.parametrize("away", [0.0, 1e4])
def test_the_derivative_of_a_single_position_does_not_depend_on_the_origin(away: float) -> None:
    """A centre of mass has no spread of its own: that of the sample counts, as for finite elements."""
    points = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    place = positions(E(3))

    def centre(x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True) + 1e-3 * (x - x.mean(0)).abs().mean(0, keepdim=True)

    report = audit(centre, points + away, place, place, samples=4, per_layer=False)
    assert 1e-5 < report.lie.relative < 1e-2
