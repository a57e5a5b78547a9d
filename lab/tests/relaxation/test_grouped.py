"""Residuals in groups of channels: what they read and write, their penalties against slow references, fold, state."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from e3nn import o3
from equirelax_lab.models import GroupConv2d, VNPointNet
from equirelax_lab.models.vector_neurons import VNLinear
from equirelax_lab.tasks.registry import defaults
from equirelax_lab.training.perf import products
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import PlacementError
from equirelax.relaxation.columns import Columns, SharedColumns, dense
from equirelax.relaxation.kinds.dense import DenseMap
from equirelax.relaxation.kinds.grouped import GroupedMap, grouped_sums, split
from equirelax.relaxation.kinds.kind import Penalised
from equirelax.relaxation.regularizers import jacobian_terms, linear_terms, residual_terms
from equirelax.relaxation.regularizers.lie_derivative import choose_rows
from equirelax.symmetry import (
    SO,
    Cyclic,
    Lorentz,
    O,
    Representation,
    equivariant_projection,
    from_irreps,
    trivial,
    vector,
)


def reps() -> dict[str, tuple[Representation, Representation]]:
    """Pairs with and without channels that are left over, by two and by three."""
    return {
        "irreps": (from_irreps("4x0e+2x0o+5x1o+1x1e+2x2e"), from_irreps("3x0e+4x1o+2x1e")),
        "vectors": (6 * vector(O(3)), 6 * vector(O(3))),
        "lorentz": (3 * vector(Lorentz()) + trivial(Lorentz(), 2), 4 * vector(Lorentz())),
        "finite": (4 * vector(Cyclic(4)) + trivial(Cyclic(4), 3), 5 * vector(Cyclic(4))),
        "one by one": (4 * (vector(SO(2)) + trivial(SO(2))), 2 * (trivial(SO(2)) + 2 * vector(SO(2)))),
    }


EVERY = pytest.mark.parametrize("name", reps())
LAYOUT = pytest.mark.parametrize("layout", ["rows", "columns", "few rows", "shared"])


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def inputs_of(layout: str, dim: int) -> tuple[list[Columns], int]:
    if layout == "columns":
        return [random(3, dim, 20), random(2, dim, 15)], -2
    if layout == "shared":
        return [SharedColumns(random(3, dim - 2, 30), random(3, 2))], -2
    return ([random(2, dim)] if layout == "few rows" else [random(40, dim), random(4, 9, dim)]), -1


def grouped(name: str, groups: int = 2, axis: int = -1) -> GroupedMap:
    """A map with random weights."""
    found = GroupedMap(*reps()[name], groups, axis).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(random(*parameter.shape))
    return found


def terms(map_: GroupedMap, inputs: list[Columns], in_rep: Representation) -> tuple[Tensor, Tensor]:
    """The sums of one map."""
    return grouped_sums([Penalised(map_, inputs, map_.feature_axis, in_rep, in_rep)])[0]


def test_maps_that_are_alike_and_maps_that_are_not_are_computed_together() -> None:
    names = ["vectors", "irreps", "vectors", "irreps", "vectors"]
    members = [
        Penalised(grouped(n), [random(rows, reps()[n][0].dim)], -1, *reps()[n])
        for n, rows in zip(names, (40, 30, 50, 3, 2), strict=True)
    ]
    for found, member in zip(grouped_sums(members), members, strict=True):
        torch.testing.assert_close(
            found, terms(member.map, list(member.inputs), member.in_rep), rtol=1e-12, atol=0
        )


@EVERY
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_every_channel_is_dealt_once(name: str, groups: int) -> None:
    rep = reps()[name][0]
    dealt = split(rep, groups)
    assert sorted([*dealt.own.flatten().tolist(), *dealt.shared.tolist()]) == list(range(rep.dim))
    per_kind = {block: sum(m for m, b in rep.blocks if b == block) for _, block in rep.blocks}
    assert len(dealt.own[0]) == sum(b.dim * (count // groups) for b, count in per_kind.items())
    # a group's features are those of its representation: they move alone, as it says
    g = rep.group.sample(1)[0].to(torch.float64)
    x = random(7, rep.dim)
    for features in dealt.own:
        expected = rep.apply(g, x)[:, features]
        torch.testing.assert_close(dealt.own_rep.apply(g, x[:, features]), expected)
    torch.testing.assert_close(
        dealt.shared_rep.apply(g, x[:, dealt.shared]), rep.apply(g, x)[:, dealt.shared]
    )


def test_neighbours_of_one_kind_go_to_different_groups() -> None:
    """So that of [node, messages], put one behind the other, every group reads both."""
    dealt = split(from_irreps("4x0e+2x1o+4x0e+2x1o"), 2)
    for features in dealt.own:
        assert [int(((a <= features) & (features < a + n)).sum()) for a, n in ((0, 4), (10, 4))] == [2, 2]


@EVERY
@LAYOUT
@pytest.mark.parametrize("scaled", [False, True])
def test_it_is_the_dense_map_of_its_weight(name: str, layout: str, scaled: bool) -> None:
    in_rep, out_rep = reps()[name]
    inputs, axis = inputs_of(layout, in_rep.dim)
    thin, full = grouped(name, axis=axis), DenseMap(in_rep.dim, out_rep.dim, axis).double()
    with torch.no_grad():
        full.weight.copy_(thin.effective_weight())
    assert (
        0 < int((full.weight == 0).sum()) == full.weight.numel() - sum(p.numel() for p in thin.parameters())
    )
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True) if scaled else None
    for x in inputs:
        points = x if isinstance(x, SharedColumns) else x.clone().requires_grad_()
        found, expected = thin(points, scale), full(points, scale)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        wanted = ([scale] if scale is not None else []) + ([points] if isinstance(points, Tensor) else [])
        cotangent = random(*found.shape)
        if wanted:
            ours, theirs = (
                torch.autograd.grad(y, wanted, cotangent, retain_graph=True) for y in (found, expected)
            )
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
        ours = torch.autograd.grad(found, list(thin.parameters()), cotangent)
        (by_weight,) = torch.autograd.grad(expected, full.weight, cotangent)
        theirs = torch.autograd.grad(thin.effective_weight(), list(thin.parameters()), by_weight)
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@EVERY
@LAYOUT
@pytest.mark.parametrize("groups", [2, 3])
def test_penalties_and_gradients_are_those_of_the_dense_weight(name: str, layout: str, groups: int) -> None:
    in_rep, out_rep = reps()[name]
    inputs, axis = inputs_of(layout, in_rep.dim)
    if split(out_rep, groups).own_rep.dim == 0 or split(in_rep, groups).own_rep.dim == 0:
        pytest.skip("fewer channels than groups: the kind builds a dense map")
    map_ = grouped(name, groups, axis)
    found = terms(map_, inputs, in_rep)
    weight = map_.effective_weight()
    expected = linear_terms(weight, None, [dense(x) for x in inputs], axis, in_rep, out_rep)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for a, b in zip(found, expected, strict=True):
        assert b > 1e-3
        ours, theirs = (
            torch.autograd.grad(total, list(map_.parameters()), create_graph=True) for total in (a, b)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        again = [
            torch.autograd.grad(sum(g.square().sum() for g in first), map_.weight, retain_graph=True)[0]
            for first in (ours, theirs)
        ]
        torch.testing.assert_close(*again, rtol=1e-9, atol=1e-8)


@EVERY
def test_penalties_are_the_slow_sums_by_differentiating_the_map(name: str) -> None:
    in_rep, out_rep = reps()[name]
    map_, x = grouped(name), random(50, in_rep.dim)
    found = terms(map_, [x], in_rep)
    torch.testing.assert_close(found, jacobian_terms(map_, [x], -1, in_rep, out_rep), rtol=1e-10, atol=1e-10)


@EVERY
def test_an_equivariant_map_in_groups_has_no_lie_term(name: str) -> None:
    in_rep, out_rep = reps()[name]
    map_ = grouped(name)
    whole = equivariant_projection(random(out_rep.dim, in_rep.dim), in_rep, out_rep)
    rows = whole[map_.written]
    with torch.no_grad():
        per_group = rows[: map_.weight[:, :, 0].numel()].unflatten(0, map_.weight.shape[:2])
        map_.weight.copy_(torch.stack([w[:, read] for w, read in zip(per_group, map_.read, strict=True)]))
        if map_.rest is not None:
            map_.rest.copy_(rows[map_.weight[:, :, 0].numel() :])
    lie, norm = terms(map_, [random(200, in_rep.dim)], in_rep)
    assert norm > 0.01
    assert lie <= 1e-20 * norm


def test_groups_cost_a_fraction_of_the_dense_map() -> None:
    rep, groups, count = 32 * vector(O(3)), 4, 500
    map_ = GroupedMap(rep, rep, groups)
    nn.init.normal_(map_.weight)
    x = torch.randn(count, rep.dim, requires_grad=True)
    step = products(lambda: map_(x, torch.tensor(0.5)).sum().backward())
    assert sum(p.multiply_adds for p in step) == 3 * count * rep.dim**2 // groups
    assert sum(p.numel() for p in map_.parameters()) == rep.dim**2 // groups


class Two(nn.Module):
    """Two vector layers; the last has fewer channels than four groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = VNLinear(4, 9).double(), VNLinear(9, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y * torch.sigmoid(y.norm(dim=2, keepdim=True)))


def relaxed(kind: er.relaxation.Grouped, gamma: float = 0.4) -> tuple[Two, er.relaxation.Relaxation]:
    model = Two()
    relaxation = er.relax(model, er.Layers(residual=kind))
    relaxation.set_gamma(gamma)
    return model, relaxation


def networks() -> dict[str, tuple[nn.Module, er.Layers]]:
    """Of vector neurons, e3nn and plain linear layers, with a placement of residuals in two groups."""
    kind = er.relaxation.Grouped(2, init="normal", std=1.0)
    torch.manual_seed(3)
    declared = tuple(
        er.relaxation.Linear(str(i), a * vector(O(3)), b * vector(O(3)))
        for i, (a, b) in enumerate([(2, 4), (4, 3)])
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return {
            "vector neurons": (Two(), er.Layers(residual=kind)),
            "e3nn": (
                nn.Sequential(o3.Linear("3x0e+2x1o", "4x0e+4x1o"), o3.Linear("4x0e+4x1o", "2x0e+3x1o")),
                er.Layers(residual=kind),
            ),
            "plain": (
                nn.Sequential(nn.Linear(6, 12, bias=False), nn.Linear(12, 9, bias=False)),
                er.Layers(residual=kind, declare=declared),
            ),
        }
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("family", networks())
def test_fold_takes_what_a_dense_residual_gives(family: str) -> None:
    """And says the same about what was lost."""
    weights: dict[str, Tensor] = {}
    models, reports = [], []
    for dense_ in (False, True):
        model, placement = networks()[family]
        if dense_:
            placement = er.Layers(residual=er.Dense(), declare=placement.declare)
        relaxation = er.relax(model, placement)
        for key, residual in relaxation:
            with torch.no_grad():
                if dense_:
                    residual.map.weight.copy_(weights[key])  # type: ignore[union-attr,operator]
                else:
                    assert isinstance(residual.map, GroupedMap)
                    weights[key] = residual.map.effective_weight().clone()
        relaxation.set_gamma(0.7)
        reports.append(er.project(model, mode="fold"))
        models.append(model)
    for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    for one, other in zip(*(r.residuals for r in reports), strict=True):
        assert one.folded > 0.01
        assert (one.folded, one.error, one.size) == pytest.approx((other.folded, other.error, other.size))


def test_sampled_rows_give_the_terms_of_those_rows() -> None:
    relaxation = relaxed(er.relaxation.Grouped(2, init="normal", std=1.0))[1]
    residual, x = relaxation["first"], random(3, 12, 30)
    found = residual_terms(residual, [x], rows=40, generator=torch.Generator().manual_seed(5))
    chosen = choose_rows([x], -2, 40, torch.Generator().manual_seed(5))
    weight = residual.linear_map.effective_weight()
    expected = linear_terms(weight, None, [chosen], -2, residual.in_rep, residual.out_rep)
    torch.testing.assert_close(found, tuple(90 / 40 * t for t in expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "make", [lambda r: er.Scheduled(r, total_steps=10), lambda r: er.ACE(r, dual_lr=0.1)]
)
def test_it_starts_strict_and_trains_with_every_kind_of_strength(make) -> None:
    model, relaxation = relaxed(er.relaxation.Grouped(2))
    x = random(5, 4, 3, 7)
    with relaxation.strict():
        strict = model(x)
    assert torch.equal(model(x), strict)
    method = make(relaxation)
    relaxation.set_gamma(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    method.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        ((model(x) - 1).square().sum() + method.penalty()).backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(bool(p.any()) for p in relaxation.residual_parameters().values())


def test_the_summary_counts_the_parameters_of_every_layer() -> None:
    """The last layer has two channels out: with four groups its map is dense."""
    relaxation = relaxed(er.relaxation.Grouped(4))[1]
    assert isinstance(relaxation["last"].map, DenseMap)
    counts = {row.path: row.parameters for row in relaxation.summary().with_status("relaxed")}
    # 9 = 4 * 2 + 1 channels out: two for every group, one that all four channels in are mixed into
    assert counts == {"first": 4 * 6 * 3 + 3 * 12, "last": 27 * 6}
    own = sum(p.numel() for p in relaxation.residual_parameters().values())
    assert relaxation.summary().parameters == own


@pytest.mark.parametrize("init", ["zeros", "normal", "default"])
def test_inits(init: str) -> None:
    rep = 21 * vector(O(3))
    one, two = (
        er.relaxation.Grouped(4, init, 1e-2).build(rep, rep, -1, torch.Generator().manual_seed(0))
        for _ in "12"
    )
    for (name, ours), theirs in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        if init == "normal":
            assert float(ours.detach().std()) == pytest.approx(1e-2, rel=0.1)
        else:  # a group reads 5 channels of 3, and the one that is left over
            bound = {"zeros": 0.0, "default": (18 if name == "weight" else 63) ** -0.5}[init]
            assert float(ours.detach().abs().max()) == pytest.approx(bound, rel=0.02)


def test_checkpoints_pickles_and_state_dicts_carry_it(tmp_path: Path) -> None:
    model, relaxation = relaxed(er.relaxation.Grouped(2, init="normal", std=0.5))
    x = random(2, 4, 3, 5)
    er.save(model, tmp_path / "model.pt")
    loaded = Two()
    er.load(loaded, tmp_path / "model.pt")
    again, _ = relaxed(er.relaxation.Grouped(2))
    again.load_state_dict(model.state_dict())
    for twin in (loaded, again, pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert isinstance(er.relaxation_of(twin)["first"].map, GroupedMap)
    assert er.relaxation_of(loaded).placements == relaxation.placements
    assert {k.rsplit(".", 1)[1] for k in model.state_dict() if "map" in k} == {"weight", "rest"}


def test_features_that_points_share_are_relaxed_alike() -> None:
    """VN-PointNet's own shared features, in a network, against dense residuals of the same weights."""
    points = random(2, 12, 3)
    found: list[tuple[Tensor, Tensor]] = []
    weights: dict[str, Tensor] = {}
    for kind in (er.relaxation.Grouped(2, init="normal", std=0.3), er.Dense("normal")):
        torch.manual_seed(1)
        model = VNPointNet(classes=4, neighbours=4, width=0.1).double()
        relaxation = er.relax(model, er.Layers(residual=kind))
        for key, residual in relaxation:
            with torch.no_grad():
                if isinstance(kind, er.Dense):
                    residual.map.weight.copy_(weights[key])  # type: ignore[union-attr,operator]
                else:
                    weights[key] = residual.linear_map.effective_weight().clone()
        relaxation.set_gamma(0.3)
        penalty = er.relaxation.regularizers.LieDerivative(relaxation, lie_weight=1.0, norm_weight=0.5)
        torch.manual_seed(2)
        found.append((model.train()(points), penalty()))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_convolutions_refuse_it() -> None:
    rep = 4 * trivial(Cyclic(4))
    with pytest.raises(PlacementError, match="Grouped makes no convolution"):
        er.relax(GroupConv2d(rep, rep, 3), er.Layers(residual=er.relaxation.Grouped(2)))


def test_settings_choose_it() -> None:
    config = defaults("modelnet40", "vn-pointnet", "scheduled")
    thin = config.updated({"residual": {"kind": "grouped", "groups": 5, "init": "normal", "std": 1e-3}})
    assert thin.residual.kind == er.relaxation.Grouped(groups=5, init="normal", std=1e-3)
    assert config.updated(thin.to_dict()) == thin
