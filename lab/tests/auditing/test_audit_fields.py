"""Audits of networks on images: the report names the layer whose grid size, stride or padding breaks the symmetry."""

from __future__ import annotations

import pytest
import torch
from equirelax_lab.models.group_conv import FieldBatchNorm, GroupConv2d, GroupPool
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing import AuditReport, GridField, audit
from equirelax.auditing.breaking import breaking
from equirelax.errors import AuditError, RepresentationError
from equirelax.methods.equi_tuning import EquiTuned
from equirelax.symmetry import SO, Cyclic, Dihedral, Group, On, Representation, regular, sign, trivial, vector
from equirelax.testing import assert_equivariant

torch.set_num_threads(1)
GROUPS = [Cyclic(4), Dihedral(4)]
FIELDS = 3


@pytest.fixture(autouse=True)
def _float64() -> object:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Anonymous(nn.Module):
    """A group convolution without readable representations."""

    def __init__(self, in_rep: Representation, out_rep: Representation, **settings: int) -> None:
        super().__init__()
        layer = GroupConv2d(in_rep, out_rep, 3, padding=1, **settings)
        self.stride = settings.get("stride", 1)
        self.register_buffer("kernel", layer.kernel().detach())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kernel, padding=1, stride=self.stride)


def network(
    group: Group, middle: nn.Module | None = None, conv: type[nn.Module] = Anonymous
) -> nn.Sequential:
    hidden = FIELDS * regular(group)
    layers = {
        "first": conv(vector(group), hidden) if conv is Anonymous else conv(vector(group), hidden, 3),
        "relu": nn.ReLU(),
        "middle": middle or nn.Identity(),
        "second": conv(hidden, hidden) if conv is Anonymous else conv(hidden, hidden, 3),
        "gate": nn.ReLU(),
        "last": conv(hidden, vector(group)) if conv is Anonymous else conv(hidden, vector(group), 3),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def report_of(model: nn.Module, group: Group, size: int, out: Representation | None = None) -> AuditReport:
    x = torch.randn(2, 2, size, size)
    return audit(model, x, GridField(vector(group)), GridField(out or vector(group)), group)


def statuses(report: AuditReport, *kinds: str) -> set[str]:
    return {row.path for row in report.layers if row.status in kinds}


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_an_equivariant_network(group: Group, size: int) -> None:
    report = report_of(network(group), group, size)
    assert report.equivariant
    assert report.before.relative < 1e-13
    assert report.first_break is None
    assert {row.status for row in report.layers} == {"ok"}
    outputs = {row.path: row.outputs for row in report.layers}
    assert outputs["first"] == (f"{FIELDS}xregular on a grid",)
    assert "no Lie algebra" in str(report)


@pytest.mark.parametrize("conv", [Anonymous, GroupConv2d])
@pytest.mark.parametrize(
    ("middle", "size"),
    [
        (lambda group: Anonymous(*[FIELDS * regular(group)] * 2, stride=2), 8),
        (lambda group: GroupConv2d(*[FIELDS * regular(group)] * 2, 3, stride=2, padding=1), 8),
        (lambda group: nn.MaxPool2d(2), 7),
        (lambda group: nn.AvgPool2d(2), 9),
        (lambda group: nn.ZeroPad2d((1, 0, 1, 0)), 7),
        (lambda group: nn.Conv2d(FIELDS * group.order, FIELDS * group.order, 3, padding=1), 7),
        (lambda group: nn.LayerNorm([FIELDS * group.order, 7, 7], bias=False), 7),
    ],
    ids=["stride", "stride-declared", "max-pool", "mean-pool", "pad", "conv", "layer-norm"],
)
def test_the_layer_is_named(middle: object, size: int, conv: type[nn.Module]) -> None:
    group = Cyclic(4)
    defect = middle(group)  # type: ignore[operator]
    if isinstance(defect, nn.LayerNorm):
        nn.init.normal_(defect.weight)  # a weight for every pixel
    report = report_of(network(group, defect, conv), group, size)
    assert report.before.relative > 1e-3
    assert report.first_break == "middle"
    assert "BREAKS" in {row.status for row in report.layers if row.path == "middle"}
    assert statuses(report, "BREAKS") == {"middle"}
    assert report.before.worst.description.startswith("rotation by ")


@pytest.mark.parametrize(("size", "stride"), [(7, 2), (9, 2), (8, 1), (9, 4)])
@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_strides_are_fine_where_the_grid_is_symmetric(group: Group, size: int, stride: int) -> None:
    hidden = FIELDS * regular(group)
    report = report_of(network(group, Anonymous(hidden, hidden, stride=stride)), group, size)
    assert report.equivariant


def test_a_flip_is_named_where_turns_are_kept() -> None:
    """C4 convolutions in a network that is audited under D4: reflections break it, and the report says so."""
    turns, group = Cyclic(4), Dihedral(4)
    model = nn.Sequential(
        GroupConv2d(vector(turns), 4 * regular(turns), 3),
        nn.ReLU(),
        GroupConv2d(4 * regular(turns), vector(turns), 3),
    )
    report = report_of(model, group, 7)
    assert report.before.components["proper"] < 1e-12 < 0.1 < report.before.components["with reflection"]
    assert report.before.worst.description.startswith("reflection across the line at ")
    assert report.first_break == "0"


class Padded(nn.Module):
    """Pads inside its own code."""

    def __init__(self, group: Group, pad: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.pad = pad
        self.lift = Anonymous(vector(group), FIELDS * regular(group))
        self.act = nn.ReLU()
        self.out = Anonymous(FIELDS * regular(group), trivial(group))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.pad(self.act(self.lift(x)), self.pad)).mean((-1, -2))


@pytest.mark.parametrize("pad", [(1, 0, 1, 0), (1, 0, 0, 0)])
def test_padding_in_somebodys_own_code(pad: tuple[int, int, int, int]) -> None:
    group = Cyclic(4)
    model = nn.Sequential(Padded(group, pad), nn.Linear(1, 3))
    report = audit(model, torch.randn(2, 2, 7, 7), GridField(vector(group)), None)
    assert report.first_break == "0"
    assert "in its own code, before it calls 0.out" in str(report)
    if pad == (1, 0, 0, 0):
        assert "grid of 7 x 8" in str(report)
    assert statuses(report, "BREAKS") == {"0"}


def test_invariants_after_pooling() -> None:
    group = Dihedral(4)
    hidden = FIELDS * regular(group)
    layers = [GroupConv2d(trivial(group), hidden, 3), FieldBatchNorm(hidden), nn.ReLU(), GroupPool(hidden)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(FIELDS, 4), nn.ReLU(), nn.Linear(4, 2)]
    report = audit(nn.Sequential(*layers, *head), torch.randn(2, 1, 7, 7), GridField(trivial(group)), None)
    assert report.equivariant
    assert {row.status for row in report.layers} == {"ok"}
    assert {row.path: row.outputs for row in report.layers}["5"] == ("invariant",)
    broken = nn.Sequential(*layers, nn.Flatten(), nn.Linear(FIELDS * 49, 4), nn.ReLU(), nn.Linear(4, 2))
    report = audit(broken, torch.randn(2, 1, 7, 7), GridField(trivial(group)), None)
    assert report.first_break == "5"
    assert "flattened" in str(report)
    assert statuses(report, "BREAKS") == {"5"}


class ChannelsLast(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.norm(x.movedim(1, -1))).movedim(-1, 1)


class Reshaped(nn.Module):
    """Fields and group elements on separate axes, with the elements outermost or innermost."""

    def __init__(self, outermost: bool) -> None:
        super().__init__()
        self.outermost, self.inner = outermost, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        split = x.unflatten(1, (FIELDS, 4))
        return self.inner(split.transpose(1, 2) if self.outermost else split).sum(2 - self.outermost)


def test_channels_last_and_split_axes() -> None:
    group = Cyclic(4)
    hidden = FIELDS * trivial(group)
    model = nn.Sequential(
        Anonymous(vector(group), hidden), ChannelsLast(FIELDS), Anonymous(hidden, vector(group))
    )
    report = report_of(model, group, 7)
    assert report.equivariant
    assert {row.path: row.outputs for row in report.layers}["1.mix"] == ("trivial on a grid, channels last",)
    for outermost in (True, False):
        model = nn.Sequential(Anonymous(vector(group), FIELDS * regular(group)), Reshaped(outermost))
        report = report_of(model, group, 7, hidden)
        assert report.equivariant
        told = {row.path: row.outputs for row in report.layers}["1.inner"]
        assert told == ("regular along axis -4 on a grid" if outermost else "regular on a grid",)


class Swapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


def test_components_in_another_order() -> None:
    group = Cyclic(4)
    hidden = FIELDS * regular(group)
    model = nn.Sequential(Swapped(), Anonymous(vector(group), hidden), nn.ReLU())
    report = report_of(model, group, 7, hidden)
    assert report.first_break == "0"
    assert "vector in another basis" in str(report)


def test_one_picture_without_a_batch() -> None:
    field = GridField(vector(Cyclic(4)))
    report = audit(nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.ReLU()), torch.randn(2, 7, 7), field, field)
    assert report.first_break == "1"
    assert statuses(report, "BREAKS") == {"1"}


def test_declared_fields() -> None:
    """Declarations count: a feature that another action explains is a break of its module."""
    group = Cyclic(4)
    model = network(group)
    x, field = torch.randn(2, 2, 7, 7), GridField(vector(group))
    hidden = GridField(FIELDS * regular(group))
    good = audit(model, x, field, field, layer_reps={"first": (field, hidden), "second": hidden})
    assert good.equivariant
    assert good.layers[0].status == "ok"
    wrong = GridField(FIELDS * 2 * vector(group))
    swapped = nn.Sequential(model, nn.ZeroPad2d((1, 0, 1, 0)))
    report = audit(swapped, x, field, field, layer_reps={"0.first": wrong})
    assert report.first_break == "0.first"
    assert "though declared" in str(report)
    with pytest.raises(AuditError, match=r"layer_reps\[.first.\].*cannot be read"):
        audit(model, x, field, field, layer_reps={"first": "regular"})


def test_relaxed_convolutions_are_known_by_their_sites() -> None:
    group = Cyclic(4)
    model = network(group, conv=GroupConv2d)
    relaxation = er.relax(model)
    for _, residual in relaxation:
        for parameter in residual.map.parameters():
            nn.init.normal_(parameter, std=0.1)
    relaxation.set_gamma(0.5)
    report = report_of(model, group, 7)
    assert report.after.relative < 1e-12 < 0.01 < report.before.relative
    assert report.first_break == "first"
    assert "relaxed, gamma = 0.5" in str(report)
    assert statuses(report, "BREAKS") == {"first", "second", "last"}
    field = GridField(vector(group))
    rows = breaking(relaxation, torch.randn(2, 2, 7, 7), field, field)
    assert len(rows) == 3
    assert all(row.added is not None and row.added > 0 and row.alone > 0 for row in rows)
    er.project(model)
    assert report_of(model, group, 7).equivariant


def test_fields_of_a_larger_group() -> None:
    """Regular features of C8 under turns by 90 degrees: another order of the entries than two features of C4."""
    group, turns = Cyclic(8), Cyclic(4)
    turn = nn.Sequential(nn.Identity(), nn.ReLU())
    x = torch.randn(2, 8, 5, 5)
    report = audit(turn, x, GridField(regular(group)), GridField(regular(group)), turns)
    assert report.equivariant
    assert {row.path: row.outputs for row in report.layers}["1"] == ("regular on a grid",)
    with pytest.raises(RepresentationError, match=r"group=Cyclic\(4\)"):
        audit(turn, x, GridField(regular(group)), GridField(regular(group)))
    rep = GridField(vector(SO(2)))
    assert audit(nn.ReflectionPad2d(1), torch.randn(1, 2, 5, 5), rep, rep, turns).equivariant


def test_assert_equivariant_takes_fields() -> None:
    group = Dihedral(4)
    field, x = GridField(vector(group)), torch.randn(2, 2, 5, 5)
    assert assert_equivariant(nn.AvgPool2d(3, 1, 1), x, field, field).equivariant
    with pytest.raises(AssertionError, match=r"rotation by -?\d+\.0 deg|reflection across"):
        assert_equivariant(nn.ZeroPad2d((1, 0, 1, 0)), x, field, field)


def test_trees_with_fields() -> None:
    """Images beside vectors and invariants, several outputs, an On and a GridField of one group."""
    group = Cyclic(4)

    def model(picture: Tensor, wind: Tensor, time: Tensor) -> dict[str, Tensor]:
        moved = picture * time + wind[..., None, None]
        return {"field": moved, "mean": moved.mean((-1, -2)), "size": moved.square().sum((1, 2, 3))}

    sample = {"picture": torch.randn(3, 2, 5, 5), "wind": torch.randn(3, 2), "time": torch.tensor(2.0)}
    v = vector(group)
    report = audit(
        model, sample, {"picture": GridField(v), "wind": v}, {"field": GridField(v), "mean": On(v, -1)}
    )
    assert report.equivariant
    assert "1xvector[C4] on a grid  (3x2x5x5 float64)" in str(report)
    with pytest.raises(AuditError, match=r"needs a tensor \(\.\.\., 2, H, W\)"):
        audit(model, sample, {"wind": GridField(v)}, None)
    with pytest.raises(AuditError, match="acts on floating tensors only"):
        audit(lambda x: x.double(), torch.zeros(1, 2, 3, 3, dtype=torch.long), GridField(v), GridField(v))


def test_grids_that_are_not_square() -> None:
    turns, halves = Cyclic(4), Cyclic(2)
    x = torch.randn(1, 2, 4, 6)
    with pytest.raises(RepresentationError, match="4 x 6 pixels is not square"):
        audit(nn.ReLU(), x, GridField(trivial(turns) + sign(turns)), GridField(trivial(turns) + sign(turns)))
    field = GridField(vector(halves))
    model = nn.Sequential(GroupConv2d(vector(halves), 2 * regular(halves), 3), nn.ZeroPad2d((1, 0, 0, 0)))
    report = audit(model, x, field, GridField(2 * regular(halves)))
    assert report.first_break == "1"
    assert statuses(report, "BREAKS") == {"1"}


def test_an_output_that_is_not_square() -> None:
    group = Cyclic(4)
    with pytest.raises(AuditError, match="`output`: A grid of 7 x 8 pixels is not square"):
        report_of(network(group, nn.ZeroPad2d((1, 0, 0, 0))), group, 7)


def test_equi_tuning_of_a_plain_classifier() -> None:
    group = Cyclic(4)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2))
    x = torch.randn(3, 1, 5, 5)
    assert not audit(plain, x, GridField(trivial(group)), None).equivariant
    tuned = EquiTuned(plain, GridField(trivial(group)), None, group)
    assert audit(tuned, x, GridField(trivial(group)), None).equivariant


@pytest.mark.slow
def test_large_pictures_take_seconds() -> None:
    """64 x 64 pixels of 100 channels, one of whose layers breaks the symmetry."""
    group = Cyclic(4)
    hidden = 25 * regular(group)
    torch.set_default_dtype(torch.float32)
    model = nn.Sequential(
        GroupConv2d(vector(group), hidden, 3),
        nn.ReLU(),
        GroupConv2d(hidden, hidden, 3, stride=2, padding=1),
        nn.ReLU(),
        GroupConv2d(hidden, vector(group), 3),
    )
    report = audit(model, torch.randn(1, 2, 64, 64), GridField(vector(group)), GridField(vector(group)))
    assert report.first_break == "2"
    assert statuses(report, "BREAKS") == {"2"}
