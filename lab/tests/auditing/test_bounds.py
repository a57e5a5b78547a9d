"""Bounds of whole networks: never below the measured errors; a reason where an assumption fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from equirelax_lab.models import EGNN, EGNO, SEGNN, GroupConv2d
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing import equivariance_bounds
from equirelax.relaxation import MLP, Dense, Layers, Linear, Relaxation, relax
from equirelax.symmetry import SE, SO, Cyclic, Lorentz, O, Representation, positions, trivial, vector

GROUPS = {"SO(3)": SO(3), "O(3)": O(3), "O(2)": O(2), "C4": Cyclic(4)}


class Shrink(nn.Module):
    """x / (1 + |x|) on every vector of `size` components: equivariant under rotations, Lipschitz constant 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        v = x.unflatten(-1, (-1, self.size))
        return (v / (1 + v.norm(dim=-1, keepdim=True))).flatten(-2)


class Scaled(nn.Module):
    """x -> 1.5 x."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * x


CONSTANTS = {"Shrink": 1.0, "Scaled": 1.5}


def chain(
    widths: list[int],
    group: object,
    kind: object,
    seed: int,
    gammas: list[float] | None = None,
    nested: bool = False,
) -> tuple[nn.Sequential, Relaxation, Representation, Representation]:
    """Random equivariant linear maps on `widths` vectors, Lipschitz maps between, residuals of random strength."""
    torch.manual_seed(seed)
    d = group.dim
    reps = [n * vector(group) for n in widths]
    modules: list[nn.Module] = []
    declared = []
    for i, (a, b) in enumerate(itertools.pairwise(reps)):
        linear = nn.Linear(a.dim, b.dim, bias=False, dtype=torch.float64)
        mix = torch.randn(widths[i + 1], widths[i], dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.kron(mix, torch.eye(d, dtype=torch.float64)))
        path = f"{i}.0" if nested else str(3 * i)
        declared.append(Linear(path, a, b))
        parts = [linear, Shrink(d), Scaled()]
        modules += [nn.Sequential(*parts)] if nested else parts
    model = nn.Sequential(*modules)
    relaxation = relax(model, Layers(residual=kind, declare=tuple(declared)))
    for i, (_, residual) in enumerate(relaxation):
        residual.set_gamma(float(torch.empty(()).uniform_(-1, 1)) if gammas is None else gammas[i])
        for name, parameter in residual.map.named_parameters():
            with torch.no_grad():
                parameter.zero_() if name.endswith("bias") else parameter.normal_(0, 0.5)
    return model, relaxation, reps[0], reps[-1]


def measured(
    model: nn.Module, relaxation: Relaxation, in_rep: Representation, out_rep: Representation
) -> tuple[float, float]:
    """(distance to the projected network, equivariance error), over ||x||, the largest over rows and elements."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, in_rep.dim, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(-4, 1, 30, dtype=torch.float64)[:, None]  # the steepest place is near 0
    size = x.norm(dim=-1)
    with torch.no_grad():
        relaxed = model(x)
        with relaxation.strict():
            distance = float(((relaxed - model(x)).norm(dim=-1) / size).max())
        error = 0.0
        for g in in_rep.group.sample(6, generator=generator):
            gap = out_rep.apply(g, relaxed) - model(in_rep.apply(g, x))
            error = max(error, float((gap.norm(dim=-1) / size).max()))
    return distance, error


@settings(deadline=None, max_examples=40)
@given(
    widths=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    group=st.sampled_from(sorted(GROUPS)),
    layers=st.integers(0, 3),
    nested=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_bounds_are_never_below_what_is_measured(
    widths: list[int], group: str, layers: int, nested: bool, seed: int
) -> None:
    kind = MLP(layers, hidden=5) if layers else Dense()
    model, relaxation, in_rep, out_rep = chain(widths, GROUPS[group], kind, seed, nested=nested)
    bounds = equivariance_bounds(relaxation, CONSTANTS)
    assert bounds.reason == ""
    distance, error = measured(model, relaxation, in_rep, out_rep)
    slack = 1 + 1e-9
    assert distance <= bounds.projection * slack + 1e-12
    assert error <= bounds.equivariance * slack + 1e-12


def test_a_module_that_is_called_three_times_is_three_layers() -> None:
    """With one layer the bound would be 0.47 where the distance is 1.27."""
    rep = vector(SO(3))
    linear = nn.Linear(3, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(3))
    for model in (
        nn.Sequential(linear, linear, linear),
        nn.Sequential(nn.Sequential(linear, linear), linear),
    ):
        path = next(name for name, module in model.named_modules() if module is linear)
        relaxation = relax(model, Layers(declare=(Linear(path, rep, rep),)))
        with torch.no_grad():
            relaxation[path].map.weight.copy_(torch.eye(3))
        relaxation.set_gamma(0.3)
        bounds = equivariance_bounds(model)
        assert bounds.projection == pytest.approx(
            1.3**3 - 1
        )  # reached: the model multiplies by 1.3 three times
        assert bounds.equivariance == pytest.approx(2 * 0.3 * 3 * 1.3**2)
        distance, _ = measured(model, relaxation, rep, rep)
        assert distance == pytest.approx(bounds.projection)
        er.project(model)


def test_the_papers_bounds_where_all_layers_are_alike() -> None:
    """(m + g b)^L - m^L and 2 g b L (m + g b)^(L-1)."""
    _, relaxation, _, _ = chain([2, 2, 2], SO(3), Dense(), 3, gammas=[0.5, -0.5])
    first, second = (relaxation.model[i].weight for i in (0, 3))
    maps = [residual.map.weight for _, residual in relaxation]
    with torch.no_grad():
        second.copy_(first)
        maps[1].copy_(maps[0])
    bounds = equivariance_bounds(relaxation, {"Shrink": 1.0, "Scaled": 1.0})
    m, b = (float(torch.linalg.matrix_norm(weight.detach(), 2)) for weight in (first, maps[0]))
    assert bounds.projection == pytest.approx((m + 0.5 * b) ** 2 - m**2)
    assert bounds.equivariance == pytest.approx(2 * 0.5 * b * 2 * (m + 0.5 * b))


def test_one_layer_reaches_its_projection_bound() -> None:
    model, relaxation, rep, _ = chain([1, 1], SO(3), Dense(), 0, gammas=[0.4])
    with torch.no_grad():
        relaxation["0"].map.weight.copy_(model[0].weight)
    found = equivariance_bounds(relaxation, CONSTANTS)
    x = 1e-9 * torch.ones(1, rep.dim, dtype=torch.float64)
    with torch.no_grad(), relaxation.strict():
        strict = model(x)
    with torch.no_grad():
        assert float((model(x) - strict).norm() / x.norm()) == pytest.approx(found.projection, rel=1e-6)


def test_without_strength_the_bounds_are_zero() -> None:
    _, relaxation, _, _ = chain([2, 3, 1], SO(3), Dense(), 0, gammas=[0.0, 0.0])
    bounds = equivariance_bounds(relaxation, CONSTANTS)
    assert bounds.equivariance == 0.0
    assert abs(bounds.projection) < 1e-12


def test_a_model_in_float32_is_measured_in_float64_and_left_as_it_was() -> None:
    model, relaxation, _, _ = chain([2, 2], SO(3), Dense(), 0)
    model.float().train()
    weight = model[0].weight.detach().clone()
    assert equivariance_bounds(relaxation, CONSTANTS).reason == ""
    assert model.training
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model[0].weight, weight)
    assert all(residual.enabled for _, residual in relaxation)


def declared(*modules: nn.Module, kind: object = Dense(), rep: Representation | None = None) -> Relaxation:
    """A `Sequential` whose first module is relaxed."""
    rep = rep or 2 * vector(SO(3))
    relaxation = relax(nn.Sequential(*modules), Layers(residual=kind, declare=(Linear("0", rep, rep),)))
    relaxation.set_gamma(1.0)
    return relaxation


def equivariant(bias: bool = False) -> nn.Linear:
    linear = nn.Linear(6, 6, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.kron(torch.randn(2, 2), torch.eye(3)))
    return linear


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = equivariant()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) + self.mix(x)


CASES: dict[str, tuple[Callable[[], Relaxation], str]] = {
    "egnn": (lambda: relax(EGNN(8, 2), "egnn-centred"), "EGNN is not a chain"),
    "segnn": (lambda: relax(SEGNN(hidden=8, layers=1), "segnn-cr"), "SEGNN is not a chain"),
    "egno": (lambda: relax(EGNO(8, 2, in_features=1, edge_features=0), "egno"), "EGNO is not a chain"),
    "batch norm": (lambda: declared(equivariant(), nn.BatchNorm1d(6)), "known of it"),
    "bias of the layer": (lambda: declared(equivariant(bias=True)), "has a bias"),
    "not linear": (lambda: declared(nn.Sequential(equivariant(), Shrink(3))), "not linear"),
    "bias of the residual": (lambda: declared(equivariant(), kind=MLP()), "f(0) is not 0"),
    "no equivariant layer": (lambda: declared(nn.Linear(6, 6, bias=False)), "not equivariant"),
    "no equivariant activation": (lambda: declared(equivariant(), nn.ReLU()), "1 (ReLU) is not equivariant"),
    "unknown map": (lambda: declared(equivariant(), Shrink(3)), "1 (Shrink): no Lipschitz constant is known"),
    "another size": (lambda: declared(equivariant(), nn.Flatten(0)), "known of it"),
    "inside a module": (
        lambda: relax(
            nn.Sequential(Twice()), Layers(declare=(Linear("0.mix", 2 * vector(SO(3)), 2 * vector(SO(3))),))
        ),
        "is not a chain of layers",
    ),
    "positions": (lambda: declared(nn.Identity(), rep=positions(SE(3)) + vector(SE(3))), "row by row"),
    "convolution": (
        lambda: relax(nn.Sequential(GroupConv2d(vector(Cyclic(4)), vector(Cyclic(4)), 3))),
        "row by row",
    ),
    "not orthogonal": (lambda: declared(nn.Identity(), rep=2 * vector(Lorentz())), "not orthogonal"),
}


@pytest.mark.parametrize("case", CASES)
def test_no_bound_where_an_assumption_fails(case: str) -> None:
    make, reason = CASES[case]
    bounds = equivariance_bounds(make())
    assert reason in bounds.reason
    assert bounds.layers == ()
    assert bounds.projection is bounds.equivariance is None


def test_representations_that_do_not_follow_on_each_other_are_refused() -> None:
    group = O(3)
    first, second = vector(group) + trivial(group, 3), trivial(group, 3) + vector(group)
    model = nn.Sequential(nn.Identity(), nn.Identity())
    relaxation = relax(model, Layers(declare=(Linear("0", first, first), Linear("1", second, second))))
    assert "is not equivariant" in equivariance_bounds(relaxation).reason
