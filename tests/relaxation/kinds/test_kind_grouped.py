"""`Grouped` does what every kind does; how channels are dealt to its groups, and what they cost."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.flop_counter import FlopCounterMode

import equirelax as er
from equirelax.errors import PlacementError
from equirelax.optim import matrices_of
from equirelax.relaxation.columns import SharedColumns
from equirelax.relaxation.kinds import Grouped
from equirelax.relaxation.kinds.dense import DenseMap
from equirelax.relaxation.kinds.grouped import GroupedMap, grouped_sums, split
from equirelax.relaxation.kinds.kind import Penalised
from equirelax.symmetry import SO, Cyclic, Lorentz, O, Representation, equivariant_projection, trivial, vector
from equirelax.testing import KindConformance


def reps() -> dict[str, tuple[Representation, Representation]]:
    """Pairs with and without channels that are left over, by two and by three."""
    return {
        "vectors": (6 * vector(O(3)), 6 * vector(O(3))),
        "lorentz": (3 * vector(Lorentz()) + trivial(Lorentz(), 2), 4 * vector(Lorentz())),
        "finite": (4 * vector(Cyclic(4)) + trivial(Cyclic(4), 3), 5 * vector(Cyclic(4))),
        "one by one": (4 * (vector(SO(2)) + trivial(SO(2))), 2 * (trivial(SO(2)) + 2 * vector(SO(2)))),
    }


EVERY = pytest.mark.parametrize("name", reps())


class TestGrouped(KindConformance):
    def build_kind(self) -> Grouped:
        return Grouped(2, "normal", std=0.3)


class TestGroupedOfAFiniteGroup(TestGrouped):
    def reps(self) -> tuple[Representation, Representation]:
        return reps()["finite"]


class TestGroupedWithoutRest(TestGrouped):
    def reps(self) -> tuple[Representation, Representation]:
        return reps()["vectors"]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def grouped(name: str, groups: int = 2, axis: int = -1) -> GroupedMap:
    """A map with random weights."""
    found = GroupedMap(*reps()[name], groups, axis).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(random(*parameter.shape))
    return found


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
    half = trivial(O(3), 4) + 2 * vector(O(3))
    dealt = split(half + half, 2)
    for features in dealt.own:
        assert [int(((a <= features) & (features < a + n)).sum()) for a, n in ((0, 4), (10, 4))] == [2, 2]


@EVERY
def test_features_that_points_share_are_mapped_and_penalised_alike(name: str) -> None:
    in_rep, out_rep = reps()[name]
    map_ = grouped(name, axis=-2)
    x = SharedColumns(random(3, in_rep.dim - 2, 30), random(3, 2))
    torch.testing.assert_close(map_(x), map_(x.dense()), rtol=1e-12, atol=1e-12)
    calls = [Penalised(map_, [each], -2, in_rep, out_rep) for each in (x, x.dense())]
    found, expected = grouped_sums(calls)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_maps_that_are_alike_and_maps_that_are_not_are_computed_together() -> None:
    names = ["vectors", "finite", "vectors", "finite", "vectors"]
    calls = [
        Penalised(grouped(n), [random(rows, reps()[n][0].dim)], -1, *reps()[n])
        for n, rows in zip(names, (40, 30, 50, 3, 2), strict=True)
    ]
    for found, call in zip(grouped_sums(calls), calls, strict=True):
        torch.testing.assert_close(found, grouped_sums([call])[0], rtol=1e-12, atol=0)


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
    lie, norm = grouped_sums([Penalised(map_, [random(200, in_rep.dim)], -1, in_rep, out_rep)])[0]
    assert norm > 0.01
    assert lie <= 1e-20 * norm


def test_groups_cost_a_fraction_of_the_dense_map() -> None:
    rep, groups, count = 32 * vector(O(3)), 4, 500
    map_ = Grouped(groups, "normal").build(rep, rep, -1)
    x = torch.randn(count, rep.dim, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        map_(x, torch.tensor(0.5)).sum().backward()
    assert counter.get_total_flops() == 2 * 3 * count * rep.dim**2 // groups
    assert sum(p.numel() for p in map_.parameters()) == rep.dim**2 // groups
    assert map_.penalty_entries(rep) == rep.dim**2 // groups
    assert len(matrices_of(map_)[map_.weight][0].view(map_.weight.flatten())) == groups


def test_a_layer_with_fewer_channels_than_groups_gets_a_dense_map() -> None:
    assert isinstance(Grouped(4).build(9 * vector(O(3)), 2 * vector(O(3)), -1), DenseMap)
    built = Grouped(4).build(4 * vector(O(3)), 9 * vector(O(3)), -1)
    # 9 = 4 * 2 + 1 channels out: two for every group, one that all four channels in are mixed into
    assert sum(p.numel() for p in built.parameters()) == 4 * 6 * 3 + 3 * 12


@pytest.mark.parametrize("init", ["zeros", "normal", "default"])
def test_inits(init: str) -> None:
    rep = 21 * vector(O(3))
    built = Grouped(4, init, 1e-2).build(rep, rep, -1, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    for name, weight in built.named_parameters():
        if init == "normal":
            assert float(weight.detach().std()) == pytest.approx(1e-2, rel=0.1)
        else:  # a group reads 5 channels of 3, and the one that is left over
            bound = {"zeros": 0.0, "default": (18 if name == "weight" else 63) ** -0.5}[init]
            assert float(weight.detach().abs().max()) == pytest.approx(bound, rel=0.02)


@pytest.mark.parametrize("bad", [{"groups": 0}, {"groups": 2.5}, {"init": "zero"}, {"std": -1.0}])
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(PlacementError, match=next(iter(bad))):
        Grouped(**bad)  # type: ignore[arg-type]


def test_convolutions_refuse_it() -> None:
    field = er.GridField(4 * trivial(Cyclic(4)))
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, bias=False))
    with pytest.raises(PlacementError, match="Grouped makes no convolution"):
        er.relax(model, er.Layers(residual=Grouped(2), declare=(er.Linear("0", field, field),)))


def relaxed_linear(kind: Grouped) -> nn.Sequential:
    """One linear map between all features of two representations, relaxed."""
    in_rep, out_rep = reps()["lorentz"]
    model = nn.Sequential(nn.Linear(in_rep.dim, out_rep.dim, bias=False))
    er.relax(model, er.Layers(declare=er.relaxation.Linear("0", in_rep, out_rep), residual=kind)).set_gamma(
        1.0
    )
    return model


def test_averages_of_buffers_leave_the_tables_of_indices_as_they_are() -> None:
    model = relaxed_linear(Grouped(2, "normal", std=0.3))
    average = AveragedModel(model, use_buffers=True, avg_fn=get_ema_avg_fn(0.9999))
    for _ in range(3):
        average.update_parameters(model)
    x = torch.randn(5, model[0].in_features)
    torch.testing.assert_close(average(x), model(x))
    assert not list(model.buffers())


def test_a_model_without_memory_gets_its_numbers_from_a_state_dict() -> None:
    model = relaxed_linear(Grouped(2, "normal", std=0.3))
    with torch.device("meta"):
        empty = relaxed_linear(Grouped(2))
    other = empty.to_empty(device="cpu")
    other.load_state_dict(model.state_dict())
    x = torch.randn(5, model[0].in_features)
    for twin in (other, copy.deepcopy(other)):
        assert torch.equal(twin(x), model(x))


@pytest.mark.slow
def test_the_tables_of_indices_are_constants_of_exported_and_compiled_models() -> None:
    model = relaxed_linear(Grouped(2, "normal", std=0.3))
    x = torch.randn(5, model[0].in_features)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_inputs_of_any_number_of_axes(shape: tuple[int, ...]) -> None:
    for name in reps():
        map_ = grouped(name)
        x = random(*shape, map_.in_dim)
        torch.testing.assert_close(map_(x), x @ map_.effective_weight().T)
