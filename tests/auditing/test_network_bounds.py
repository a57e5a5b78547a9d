"""Bounds of whole networks: never below what is measured; n/a, with the reason, where an assumption fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing.bounds import equivariance_bound, network_bounds, projection_bound
from equirelax.errors import AuditError
from equirelax.models import EGNN, EGNO, SEGNN, GroupConv2d
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
    bounds = network_bounds(relaxation, CONSTANTS)
    assert bounds.reason == ""
    assert len(bounds.layers) == len(widths) - 1
    distance, error = measured(model, relaxation, in_rep, out_rep)
    slack = 1 + 1e-9
    assert distance <= bounds.sharp_projection * slack + 1e-12
    assert error <= bounds.sharp_equivariance * slack + 1e-12
    assert bounds.sharp_projection <= bounds.projection * slack + 1e-12
    assert bounds.sharp_equivariance <= bounds.equivariance * slack + 1e-12
    parts = sum(bounds.contribution(i) for i in range(len(bounds.layers)))
    assert parts == pytest.approx(bounds.sharp_equivariance)


def test_the_papers_bounds_with_constants_of_one_network() -> None:
    _, relaxation, _, _ = chain([2, 2, 2], SO(3), Dense(), 3, gammas=[0.5, -0.25])
    bounds = network_bounds(relaxation, CONSTANTS)
    strict = [1.5 * float(torch.linalg.matrix_norm(relaxation.model[i].weight.detach(), 2)) for i in (0, 3)]
    loose = [
        1.5 * float(torch.linalg.matrix_norm(residual.map.weight.detach(), 2)) for _, residual in relaxation
    ]
    assert [one.strict for one in bounds.layers] == pytest.approx(strict)
    assert [one.residual for one in bounds.layers] == pytest.approx(loose)
    assert [one.gamma for one in bounds.layers] == pytest.approx([0.5, 0.25])
    assert bounds.projection == pytest.approx(projection_bound(max(strict), max(loose), 0.5, 2))
    assert bounds.equivariance == pytest.approx(equivariance_bound(max(strict), max(loose), 0.5, 2))
    total = [m + g * b for m, b, g in zip(strict, loose, (0.5, 0.25), strict=True)]
    assert bounds.sharp_projection == pytest.approx(total[0] * total[1] - strict[0] * strict[1])
    assert bounds.sharp_equivariance == pytest.approx(loose[0] * total[1] + 0.5 * loose[1] * total[0])
    assert "equivariance error" in str(bounds)


def test_one_layer_reaches_its_projection_bound() -> None:
    model, relaxation, rep, _ = chain([1, 1], SO(3), Dense(), 0, gammas=[0.4])
    with torch.no_grad():
        relaxation["0"].map.weight.copy_(model[0].weight)
    found = network_bounds(relaxation, CONSTANTS)
    x = 1e-9 * torch.ones(1, rep.dim, dtype=torch.float64)
    with torch.no_grad(), relaxation.strict():
        strict = model(x)
    with torch.no_grad():
        assert float((model(x) - strict).norm() / x.norm()) == pytest.approx(found.projection, rel=1e-6)


def test_without_strength_the_bounds_are_zero() -> None:
    _, relaxation, _, _ = chain([2, 3, 1], SO(3), Dense(), 0, gammas=[0.0, 0.0])
    bounds = network_bounds(relaxation, CONSTANTS)
    assert bounds.equivariance == bounds.projection == bounds.sharp_equivariance == 0.0
    assert abs(bounds.sharp_projection) < 1e-12


def test_a_model_in_float32_is_measured_in_float64_and_left_as_it_was() -> None:
    model, relaxation, _, _ = chain([2, 2], SO(3), Dense(), 0)
    model.float().train()
    weight = model[0].weight.detach().clone()
    assert network_bounds(relaxation, CONSTANTS).reason == ""
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
    "batch norm": (lambda: declared(equivariant(), nn.BatchNorm1d(6)), "batch norm"),
    "bias of the layer": (lambda: declared(equivariant(bias=True)), "has a bias"),
    "not linear": (lambda: declared(nn.Sequential(equivariant(), Shrink(3))), "not linear"),
    "bias of the residual": (lambda: declared(equivariant(), kind=MLP()), "f(0) is not 0"),
    "no equivariant layer": (lambda: declared(nn.Linear(6, 6, bias=False)), "not equivariant"),
    "no equivariant activation": (lambda: declared(equivariant(), nn.ReLU()), "1 (ReLU) is not equivariant"),
    "unknown map": (lambda: declared(equivariant(), Shrink(3)), "no Lipschitz constant is known of Shrink"),
    "another size": (
        lambda: declared(equivariant(), nn.Linear(6, 2, bias=False)),
        "changes the number of features",
    ),
    "inside a module": (
        lambda: relax(
            nn.Sequential(Twice()),
            Layers(declare=(Linear("0.mix", 2 * vector(SO(3)), 2 * vector(SO(3))),)),
        ),
        "0.mix is inside a module",
    ),
    "positions": (
        lambda: declared(nn.Identity(), rep=positions(SE(3)) + vector(SE(3))),
        "not a linear action",
    ),
    "convolution": (
        lambda: relax(nn.Sequential(GroupConv2d(vector(Cyclic(4)), vector(Cyclic(4)), 3))),
        "0 (GroupConv2d) is a convolution",
    ),
    "not orthogonal": (lambda: declared(nn.Identity(), rep=2 * vector(Lorentz())), "not orthogonal"),
}


@pytest.mark.parametrize("case", CASES)
def test_no_bound_where_an_assumption_fails(case: str) -> None:
    make, reason = CASES[case]
    bounds = network_bounds(make())
    assert reason in bounds.reason
    assert bounds.layers == ()
    assert (
        bounds.projection
        is bounds.equivariance
        is bounds.sharp_projection
        is bounds.sharp_equivariance
        is None
    )
    assert str(bounds).startswith("bounds (ACE section 4): n/a: ")
    assert bounds.to_dict()["reason"] == bounds.reason


def test_representations_that_do_not_follow_on_each_other_are_refused() -> None:
    group = O(3)
    first, second = vector(group) + trivial(group, 3), trivial(group, 3) + vector(group)
    model = nn.Sequential(nn.Identity(), nn.Identity())
    relaxation = relax(model, Layers(declare=(Linear("0", first, first), Linear("1", second, second))))
    assert "what comes before it gives" in network_bounds(relaxation).reason


def test_mistaken_constants() -> None:
    relaxation = declared(equivariant(), Shrink(3))
    with pytest.raises(AuditError, match=r"no module 'Shrnk'. Did you mean 'Shrink'"):
        network_bounds(relaxation, {"Shrnk": 1.0})
    with pytest.raises(AuditError, match="finite number >= 0"):
        network_bounds(relaxation, {"Shrink": -1.0})
    assert network_bounds(relaxation, {"1": 1.0}).reason == ""
    assert er.relaxation.relaxation_of(relaxation.model)["0"].enabled


def test_audits_report_the_bounds_of_relaxed_models_and_why_there_are_none() -> None:
    model, _, rep, _ = chain([2, 2], SO(3), Dense(), 0, gammas=[0.5])
    x = torch.randn(6, rep.dim, dtype=torch.float64)
    assert er.audit(model, x, rep, rep, samples=2, per_layer=False, lie=False).bounds is None
    report = er.audit(model, x, rep, rep, samples=2, per_layer=False, lie=False, bounds=True)
    assert "Shrink" in report.bounds.reason
    assert "n/a: 1 (Shrink): no Lipschitz constant is known" in str(report)
    assert report.to_dict()["bounds"]["equivariance"] is None
    er.project(model)
    report = er.audit(model, x, rep, rep, samples=2, per_layer=False, lie=False, bounds=True)
    assert report.bounds is report.to_dict()["bounds"] is None
    assert "bounds" not in str(report)


def test_an_audit_stays_below_the_bound() -> None:
    relaxation = declared(equivariant(), nn.Identity(), kind=Dense(init="normal", std=0.3))
    rep = 2 * vector(SO(3))
    report = er.audit(
        relaxation.model, torch.randn(9, rep.dim), rep, rep, per_layer=False, lie=False, bounds=True
    )
    assert report.bounds.equivariance > 0
    assert "equivariance error" in str(report.bounds)
    assert report.e_prime > 1e-3
    x = torch.randn(9, rep.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    again = er.audit(relaxation.model, x, rep, rep, per_layer=False, lie=False, bounds=True)
    assert again.e_prime <= again.bounds.equivariance * float(x.norm(dim=-1).max())
