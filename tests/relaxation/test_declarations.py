"""One declaration for linear maps in every layout that published networks keep their features in."""

from __future__ import annotations

import ast
import re

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import PlacementError, RepresentationError, UnfoldableError
from equirelax.relaxation import MLP, Layers, Linear, LowRank
from equirelax.relaxation.kinds import EquivariantDense
from equirelax.relaxation.spec import decode, encode
from equirelax.symmetry import SO, Cyclic, GridField, O, On, equivariant_projection, trivial, vector

V = vector(O(3))


pytestmark = pytest.mark.usefixtures("float64")


class Mixing(nn.Module):
    """A parameter (out, in) over the channels of some axis, as VN-transformer and others write it."""

    def __init__(self, channels_in: int, channels_out: int, axis: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in))
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return (x.movedim(self.axis, -1) @ self.weight.mT).movedim(-1, self.axis)


# name: the module, the shape of its input, how one channel transforms, the axis of the channels
LAYOUTS = {
    "PaiNN, TorchMD-ET: (atoms, 3, channels)": (
        lambda: nn.Linear(4, 5, bias=False),
        (7, 3, 4),
        On(V, -2),
        -1,
    ),
    "GVP: (nodes, channels, 3), transposed": (
        lambda: nn.Linear(4, 5, bias=False),
        (7, 2, 3, 4),
        On(V, -2),
        -1,
    ),
    "VN-transformer: (batch, points, channels, 3)": (lambda: Mixing(4, 5, -2), (2, 7, 4, 3), On(V, -1), -2),
    "channels first: (batch, channels, 3, points)": (lambda: Mixing(4, 5, 1), (2, 4, 3, 7), On(V, 2), 1),
    "TensorNet: (atoms, 3, 3, channels)": (
        lambda: nn.Linear(4, 5, bias=False),
        (7, 3, 3, 4),
        On(V, (-3, -2)),
        -1,
    ),
    "TensorNet, channels first": (lambda: Mixing(4, 5, 1), (7, 4, 3, 3), On(V, (-2, -1)), 1),
    "ViSNet: (atoms, l = 1 and 2, channels)": (
        lambda: nn.Linear(4, 5, bias=False),
        (7, 8, 4),
        On("1x1o+1x2e", -2),
        -1,
    ),
    "several copies": (lambda: nn.Linear(4, 5, bias=False), (7, 10, 4), On("1x0e+3x1o", -2), -1),
}


def brute_force(
    residual: er.relaxation.Residual, action: On, channel_axis: int, x: Tensor, out: Tensor
) -> Tensor:
    """What is added, entry by entry: components and channels found in the features by the representation's blocks."""
    blocks, starts = action.full.blocks, action.full.slices()

    def position(channels: int, channel: int, component: int) -> int:
        for (copies, block), where in zip(blocks, starts, strict=True):
            if where.start <= component < where.stop:
                size = copies * block.dim
                return channels * where.start + channel * size + component - where.start
        raise AssertionError

    def last(t: Tensor) -> Tensor:  # (..., channels, components)
        axes = [axis % t.dim() for axis in (channel_axis, *action.axes)]
        others = [axis for axis in range(t.dim()) if axis not in axes]
        return t.permute(*others, *axes).flatten(len(others) + 1)

    a, b = last(x), last(out)
    weight = residual.map.weight
    added = torch.zeros_like(b)
    for o in range(b.shape[-2]):
        for j in range(b.shape[-1]):
            row = position(b.shape[-2], o, j)
            for c in range(a.shape[-2]):
                for i in range(a.shape[-1]):
                    added[..., o, j] += weight[row, position(a.shape[-2], c, i)] * a[..., c, i]
    axes = [axis % out.dim() for axis in (channel_axis, *action.axes)]
    others = [axis for axis in range(out.dim()) if axis not in axes]
    order = [*others, *axes]
    shape = [out.shape[axis] for axis in order]
    return added.reshape(shape).permute([order.index(axis) for axis in range(out.dim())])


def relaxed(module: nn.Module, declared: Linear, kind=None) -> tuple[nn.Module, er.relaxation.Relaxation]:
    model = nn.ModuleDict({"map": module})
    return model, er.relax(model, Layers(declare=(declared,), residual=kind or er.Dense("normal", 0.5)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_added_is_the_dense_map_between_all_components_of_all_channels(name):
    build, shape, action, channel_axis = LAYOUTS[name]
    module = build()
    model, relaxation = relaxed(module, Linear("map", action, channel_axis=channel_axis))
    x = torch.randn(shape)
    strict = model["map"](x)
    relaxation.set_gamma(0.7)
    expected = strict + 0.7 * brute_force(relaxation["map"], action, channel_axis, x, strict)
    torch.testing.assert_close(model["map"](x), expected, rtol=1e-10, atol=1e-10)
    assert (expected - strict).norm() > 0.1
    er.project(model)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_declared_action_is_the_residuals_representation(name):
    """An equivariant residual commutes with the declared action, and folds without a rest where it is W (x) 1."""
    build, shape, action, channel_axis = LAYOUTS[name]
    module = build()
    model, relaxation = relaxed(
        module, Linear("map", action, channel_axis=channel_axis), EquivariantDense("normal", 0.5)
    )
    relaxation.set_gamma(1.0)
    x = torch.randn(shape)
    assert er.audit(model["map"], x, action, action, lie=False, per_layer=False).relative < 1e-10
    er.project(model, mode="fold")
    assert er.audit(model["map"], x, action, action, lie=False, per_layer=False).relative < 1e-10
    model, relaxation = relaxed(module, Linear("map", action, channel_axis=channel_axis))
    relaxation.set_gamma(1.0)
    assert er.audit(model["map"], x, action, action, lie=False, per_layer=False).relative > 1e-2
    report = er.project(model, mode="fold")
    assert 0 < report.residuals[0].error < 1


def test_a_map_over_channels_folds_exactly():
    action = On("1x1o+1x2e", -2)
    model, relaxation = relaxed(nn.Linear(3, 2, bias=False), Linear("map", action, channel_axis=-1))
    x, mix = torch.randn(5, 8, 3), torch.randn(2, 3)
    with torch.no_grad():
        relaxation["map"].map.weight.copy_(torch.block_diag(*(torch.kron(mix, torch.eye(n)) for n in (3, 5))))
    relaxation.set_gamma(1.0)
    before = model["map"](x)
    torch.testing.assert_close(before, x @ (model["map"].weight + mix).T)
    assert er.project(model, mode="fold").residuals[0].error < 1e-12
    torch.testing.assert_close(model["map"](x), before)


def test_matrices_between_all_features_on_another_axis_and_on_two():
    model, relaxation = relaxed(Mixing(9, 3, 1), Linear("map", On("3x1o", 1), On("1x1o", 1)))
    x = torch.randn(4, 9, 2)
    relaxation.set_gamma(1.0)
    added = torch.einsum("oc,bcp->bop", relaxation["map"].map.weight, x)
    with relaxation.strict():
        strict = model["map"](x)
    torch.testing.assert_close(model["map"](x), strict + added)

    class Trace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)

    model, relaxation = relaxed(Trace(), Linear("map", On("1x1o", (-2, -1)), "1x0e"))
    x = torch.randn(4, 3, 3)
    relaxation.set_gamma(1.0)
    added = x.flatten(1) @ relaxation["map"].map.weight.T
    torch.testing.assert_close(model["map"](x), Trace()(x) + added)


@pytest.mark.parametrize("kind", [MLP(layers=2), LowRank(2)])
def test_every_kind_of_residual_works_on_every_layout(kind):
    model, relaxation = relaxed(
        nn.Linear(4, 4, bias=False), Linear("map", On("1x1o", (-3, -2)), channel_axis=-1), kind
    )
    for p in relaxation.residual_parameters().values():
        nn.init.normal_(p)
    relaxation.set_gamma(1.0)
    x = torch.randn(5, 3, 3, 4)
    assert (model["map"](x) - x @ model["map"].weight.T).norm() > 0.1


def test_on_two_axes_is_r_m_r_transposed():
    action = On(vector(SO(3)), (-2, -1))
    g = SO(3).sample(1, generator=torch.Generator().manual_seed(0))[0]
    m = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(action.apply(g, m), g @ m @ g.T)
    flat = action.full.apply(g, m.flatten(-2))
    torch.testing.assert_close(action.apply(g, m).flatten(-2), flat)
    torch.testing.assert_close(action.derivative(m).flatten(-2), action.full.derivative(m.flatten(-2)))
    assert [action.moves(axis, 4) for axis in range(4)] == [False, False, True, True]
    assert not action.mismatch((3, 3))
    assert "(-2, -1)" in action.mismatch((3, 4))
    for axis in ((-1, -1), (0, 1, 2), (), "x"):
        with pytest.raises(RepresentationError, match="axis"):
            On(V, axis)


@pytest.mark.parametrize(
    "declared",
    [
        Linear("a", "2x0e+1x1o"),
        Linear("a", On("1x1o", (-3, -2)), channel_axis=-1, channels=(4, 5)),
        Linear("a", GridField(trivial(Cyclic(4), 3)), GridField(trivial(Cyclic(4), 2))),
    ],
)
def test_declarations_are_stored(declared):
    assert decode(encode(Layers(declare=(declared,)))) == Layers(declare=(declared,))


class TheirLinearLeakyReLU(nn.Module):
    """The layer of the vector-neuron code: x is (batch, channels, 3, ...), maps are called on x.transpose(1, -1)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.map_to_feat = nn.Linear(channels_in, channels_out, bias=False)
        self.map_to_dir = nn.Linear(channels_in, channels_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        p, d = (
            self.map_to_feat(x.transpose(1, -1)).transpose(1, -1),
            self.map_to_dir(x.transpose(1, -1)).transpose(1, -1),
        )
        dot, norm = (p * d).sum(2, keepdim=True), d.square().sum(2, keepdim=True) + 1e-6
        return torch.where(dot >= 0, p, p - dot / norm * d)


TheirLinearLeakyReLU.__name__ = "VNLinearLeakyReLU"
SHAPES = [(2, 4, 3), (2, 4, 3, 7), (2, 4, 3, 7, 5), (2, 4, 3, 3), (2, 4, 3, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_public_vector_neurons_are_relaxed_in_tensors_of_every_rank_n6(shape):
    model = nn.Sequential(TheirLinearLeakyReLU(4, 5))
    x, along = torch.randn(shape), On(V, 2)
    relaxation = er.relax(model)
    assert list(relaxation.residuals) == ["0.map_to_feat", "0.map_to_dir"]
    relaxation.set_gamma(1.0)
    feat, rows = relaxation["0.map_to_feat"], x.movedim((1, 2), (-2, -1)).flatten(-2)
    nn.init.normal_(feat.map.weight)
    with relaxation.strict():
        strict = model[0].map_to_feat(x.transpose(1, -1)).transpose(1, -1)
    added = (rows @ feat.map.weight.T).unflatten(-1, (5, 3)).movedim((-2, -1), (1, 2))
    torch.testing.assert_close(model[0].map_to_feat(x.transpose(1, -1)).transpose(1, -1), strict + added)
    with torch.no_grad():
        for _, residual in relaxation:
            weight = torch.randn(residual.map.weight.shape)
            residual.map.weight.copy_(equivariant_projection(weight, residual.in_rep, residual.out_rep))
    relaxed_out = model(x)
    assert er.audit(model, x, along, along, lie=False, per_layer=False).relative < 1e-9
    er.project(model, mode="fold")
    torch.testing.assert_close(model(x), relaxed_out)


def test_wrong_axes_are_told_with_shapes_also_where_there_are_three_points_n6():
    model, _ = relaxed(nn.Linear(4, 5, bias=False), Linear("map", On("1x1o", -3), channel_axis=-1))
    with pytest.raises(
        RepresentationError, match=re.escape("4 channels on axis -1 and 3 components on axis -3")
    ) as caught:
        model["map"](torch.randn(2, 7, 3, 4))
    assert "(2, 7, 3, 4)" in str(caught.value)
    # (batch, channels, 3, 3 points), declared one axis off: the channels of the weight do not stand there
    model, _ = relaxed(Mixing(4, 5, 1), Linear("map", On("1x1o", -1), channel_axis=-2))
    with pytest.raises(RepresentationError, match=r"map.*4 channels on axis -2.*\(2, 4, 3, 3\)"):
        model["map"](torch.randn(2, 4, 3, 3))


def fields(channels: int) -> Linear:
    rep = GridField(channels * trivial(Cyclic(4)))
    return Linear("map", rep, rep)


@pytest.mark.parametrize(
    ("module", "declare", "words"),
    [
        (lambda: nn.Linear(4, 5), lambda: Linear("map", On("1x1o", -2), channel_axis=-1), "bias=False"),
        (
            lambda: nn.Linear(4, 5, bias=False),
            lambda: Linear("map", On("1x1o", -1), channel_axis=-2),
            "axis -1",
        ),
        (lambda: nn.Linear(4, 5, bias=False), lambda: Linear("map", On("1x1o", -2)), "channel_axis"),
        (lambda: nn.Linear(3, 3, bias=False), lambda: Linear("map", On("1x1o", -2)), "channel_axis=-1"),
        (
            lambda: nn.Identity(),
            lambda: Linear("map", On("1x1o", -2), channel_axis=-1),
            r"channels=\(in, out\)",
        ),
        (
            lambda: nn.Linear(4, 5, bias=False),
            lambda: Linear("map", On("1x1o", -2), channel_axis=-1, channels=(5, 4)),
            r"\(5, 4\)",
        ),
        (lambda: nn.Linear(3, 3), lambda: Linear("map", "1x1o", vector(SO(3))), "one group"),
        (
            lambda: nn.Linear(3, 3),
            lambda: Linear("map", On("1x1o", -2), "1x0e", channel_axis=-1),
            "Leave out_rep out",
        ),
        (
            lambda: nn.Linear(3, 3),
            lambda: Linear("map", GridField(trivial(Cyclic(4))), trivial(Cyclic(4))),
            "two GridFields",
        ),
        (lambda: nn.Linear(3, 3), lambda: Linear("map", "1x1o", channels=(3, 3)), "channel_axis"),
        (lambda: nn.ConvTranspose2d(2, 2, 3), lambda: fields(2), "^map .*transposed"),
        (lambda: nn.Conv3d(2, 2, 3), lambda: fields(2), r"^map .*\(3, 3, 3\)"),
        (lambda: nn.Conv1d(2, 2, 3), lambda: fields(2), r"^map .*\(3,\)"),
    ],
)
def test_declarations_that_cannot_be_are_refused(module, declare, words):
    with pytest.raises(PlacementError, match=words):
        relaxed(module(), declare())


def test_what_has_no_weight_over_channels_does_not_fold():
    declared = Linear("map", On("1x1o", -2), channel_axis=-1, channels=(4, 4))
    model, relaxation = relaxed(nn.Identity(), declared)
    relaxation.set_gamma(1.0)
    assert model["map"](torch.randn(5, 3, 4)).shape == (5, 3, 4)
    with pytest.raises(UnfoldableError, match="map"):
        er.project(model, mode="fold")


def test_where_nothing_is_known_the_lines_to_write_are_told():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.vec_proj = nn.Linear(4, 4, bias=False)

        def forward(self, h, pos, batch=None):
            return h, pos

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(3))
            self.conv = nn.Conv2d(3, 8, 3)

    with pytest.raises(PlacementError) as caught:
        er.relax(Net())
    text = str(caught.value)
    for line in (
        'Linear("*.vec_proj", On("1x1o", axis=-2), channel_axis=-1)',
        'Linear("conv", GridField(in_rep), GridField(out_rep))',
        'Blocks("Block", reads=(Reads("h", "Nx0e"), Reads("pos", "1x1o", centred=True)), adds=(',
    ):
        assert text.count(line) == 1


class Plain(nn.Module):
    """A linear map with a bias, and nothing that tells what it acts on."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 6)

    def forward(self, given):
        return self.lin(given)


class Named(nn.Module):
    """Takes features and coordinates, and gives both."""

    def forward(self, feats, coors):
        return feats, coors


class Masked(Named):
    """Is told which of the nodes are there."""

    def forward(self, feats, coors, mask=None):
        return feats, coors


class OwnMatrix(nn.Module):
    """Mixes channels by a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, v):
        return self.weight @ v


class Invariant(nn.Module):
    """Takes positions, and works on invariants in a list of blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Plain() for _ in range(2))

    def forward(self, z, pos):
        return pos


@pytest.mark.parametrize(
    ("network", "line", "keys"),
    [
        (Plain(), 'equirelax.relax(network, Layers(declare=Linear("lin", in_rep, out_rep)))', ["lin"]),
        (
            nn.Sequential(nn.Linear(4, 6)),
            'equirelax.relax(network, Layers(declare=Linear("0", in_rep, out_rep)))',
            ["0"],
        ),
        (
            nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 6), OwnMatrix(), OwnMatrix()),
            'equirelax.relax(network, Layers(declare=Linear("OwnMatrix", On("1x1o", axis=-1), channel_axis=-2)))',
            ["2", "3"],
        ),
        (Invariant(), 'equirelax.relax(network, Streams("Plain", N, "pos"))', ["blocks.0", "blocks.1"]),
        (
            nn.ModuleDict({"of": Invariant()}),
            'equirelax.relax(network, Streams("Plain", N, "pos", source="of"))',
            ["of.blocks.0", "of.blocks.1"],
        ),
        (
            nn.Sequential(Named()),
            'equirelax.relax(network, Blocks("Named", reads=(Reads("feats", "Nx0e"), Reads("coors", "1x1o", centred=True))',
            ["0:0", "0:1"],
        ),
        (
            nn.Sequential(Masked()),
            'equirelax.relax(network, Blocks("Masked", reads=(Reads("feats", "Nx0e"), Reads("coors", "1x1o", centred=True)), '
            'adds=(Adds(0, "Nx0e"), Adds(1, "1x1o")), mask="mask"))',
            ["0:0", "0:1"],
        ),
        (nn.Sequential(nn.ReLU()), None, []),
        (nn.Sequential(nn.Conv3d(2, 2, 3)), None, []),
    ],
)
def test_every_kind_of_module_has_a_line_that_relaxes_it(network, line, keys):
    """The line for a whole network or block comes first; it runs as it stands, once N and the representations are given."""
    with pytest.raises(PlacementError) as caught:
        er.relax(network)
    lines = [text.strip() for text in str(caught.value).splitlines()[1:]]
    for text in lines:
        ast.parse(text)
    if line is None:
        assert lines == []
        return
    names = {"equirelax": er, "network": network, "N": 6, "in_rep": "1x0e+1x1o", "out_rep": "2x1o"}
    imports = [text for text in lines if text.startswith("from ")]
    exec("\n".join(imports), names)
    first = lines[len(imports)]
    assert first.startswith(line)
    relaxation = eval(first.replace("Nx0e", "6x0e"), names)
    assert list(relaxation.residuals) == keys


@pytest.mark.parametrize(
    "wrong", [[Linear("0", V)], Linear("0", V), MLP(), Layers], ids=lambda each: type(each).__name__
)
def test_declarations_kinds_and_classes_are_no_placement(wrong):
    with pytest.raises(PlacementError, match=r"Layers\(declare="):
        er.relax(nn.Sequential(nn.Linear(3, 3)), wrong)


def test_one_pattern_and_one_declaration_need_no_tuple():
    """The letters of a pattern are no patterns: "10" is not the modules 1 and 0."""
    declaration = Linear("10", V)
    for lone, several in [
        (Layers(include="10", declare=declaration), Layers(include=("10",), declare=(declaration,))),
        (Layers(exclude="10", declare=declaration), Layers(exclude=("10",), declare=(declaration,))),
    ]:
        assert lone == several
        assert decode(encode(lone)) == several
    model = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(11)))
    assert list(er.relax(model, Layers(include="10", declare=Linear("*", V))).residuals) == ["10"]


def test_a_module_with_two_names_is_found_by_each():
    def build() -> nn.Module:
        model = nn.Module()
        model.enc = nn.Sequential(OwnMatrix())
        model.dec, model.other = model.enc, OwnMatrix()
        return model

    declared = Linear("OwnMatrix", On("1x1o", axis=-1), channel_axis=-2)
    for include in ("dec.0", "dec.*"):
        assert list(er.relax(build(), er.Layers(include=include, declare=declared)).residuals) == ["enc.0"]
    assert list(er.relax(build(), er.Layers(exclude="dec.0", declare=declared)).residuals) == ["other"]
