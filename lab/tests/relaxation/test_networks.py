"""Network files: SEGNN's residuals stand behind the gate, in our code and in the authors' (`shared` and wrapped gates)."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from equirelax_lab.placements import SEGNNUpdates
from torch import nn
from torch.utils.checkpoint import checkpoint

import equirelax as er
from equirelax.errors import PlacementError, RelaxationStateError

pytest.importorskip("e3nn")
from equirelax_lab.models import SEGNN, MolecularSEGNN
from wrapped_products import Gated, Scaled


class SEGNNLayer(nn.Module):
    """The node update of the authors' code: the gate is a part of the first update."""

    def __init__(self) -> None:
        super().__init__()
        self.update_layer_1 = Gated("4x0e+2x1o+4x0e+2x1o", 4, 2)
        self.update_layer_2 = Scaled("4x0e+2x1o", "4x0e+2x1o")

    def forward(self, x, y):
        return x + self.update_layer_2(self.update_layer_1(torch.cat([x, x.tanh()], 1), y), y)


class Theirs(nn.Module):
    """The authors' network as far as the node updates go. `SEGNN` is its class's name."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_layer = Scaled("1x0e+1x1o", "4x0e+2x1o")
        self.layers = nn.ModuleList(SEGNNLayer() for _ in range(2))

    def forward(self, x, y):
        x = self.embedding_layer(x, y)
        for layer in self.layers:
            x = layer(x, y)
        return x


Theirs.__name__ = "SEGNN"


pytestmark = pytest.mark.usefixtures("float64")


def ours():
    return SEGNN(hidden="4x0e+4x1o", layers=2)


def bodies(n=5):
    edges = torch.tensor([(i, j) for i in range(n) for j in range(n) if i != j]).T
    return torch.randn(n, 3), torch.randn(n, 3), torch.randn(n, 1).sign(), edges


def attributes(n=5):
    """Of nodes: their scalar is 1 in a SEGNN."""
    return torch.cat([torch.ones(n, 1), torch.randn(n, 3)], dim=1)


def randomise(relaxation, gamma=1.0):
    for p in relaxation.residual_parameters().values():
        nn.init.normal_(p, std=0.3)
    relaxation.set_gamma(gamma)


def test_segnn_as_published_has_the_parameters_of_aces_code():
    """`recipes.md`: 256-256-128-128 and 128-256-128-128, with biases."""
    relaxation = er.relax(SEGNN(), "segnn-ace")
    widths = [[m.in_features for m in r.map.layers] + [r.out_rep.dim] for _, r in relaxation]
    assert widths == [[256, 256, 128, 128], [128, 256, 128, 128]] * 4
    assert sum(p.numel() for p in relaxation.residual_parameters().values()) == 790_528
    assert relaxation.summary().parameters == 790_528


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "build", [ours, lambda: MolecularSEGNN(hidden="4x0e+4x1o", layers=2, lmax_attributes=1)]
)
def test_the_first_residual_is_added_behind_the_gate_and_read_by_the_second(build, training):
    model = build().train(training)
    layer = model.layers[0]
    relaxation = er.relax(model)
    assert list(relaxation.residuals) == [f"layers.{i}.update_{j}" for i in (0, 1) for j in (1, 2)]
    randomise(relaxation)
    first, second = relaxation["layers.0.update_1"], relaxation["layers.0.update_2"]
    assert first.map.weight.shape == (16, 32)
    ends, nodes = torch.randn(5, 32), attributes()
    with relaxation.strict():
        gated = layer.gate(layer.update_1(ends, nodes))
        summed = gated + ends @ first.map.weight.T
        expected = layer.update_2(summed, nodes) + summed @ second.map.weight.T
    found = layer.update_2(layer.gate(layer.update_1(ends, nodes)), nodes)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, layer.update_2.forward(gated, nodes))


def test_the_authors_segnn_is_relaxed_behind_its_gates():
    model = nn.ModuleDict({"encoder": Theirs(), "head": Scaled("4x0e+2x1o", "1x1o")})
    relaxation = er.relax(model)
    updates = [f"encoder.layers.{i}.update_layer_{j}" for i in (0, 1) for j in (1, 2)]
    assert list(relaxation.residuals) == [*updates, "head"]
    randomise(relaxation)
    layer = model["encoder"].layers[1]
    x, y = torch.randn(5, 20), attributes()
    with relaxation.strict():
        strict = layer.update_layer_1(x, y)
    first = relaxation[updates[2]]
    torch.testing.assert_close(
        layer.update_layer_1(x, y), strict + x @ first.map.weight.T, rtol=1e-12, atol=1e-12
    )
    rows = {row.path: row for row in relaxation.summary().rows}
    assert "SEGNN" in rows["encoder.embedding_layer"].reason


def test_what_a_network_file_leaves_is_relaxed_where_it_is_included():
    model = Theirs()
    assert "embedding_layer" in er.relax(model, include=("embedding_layer", "layers.0.*")).residuals
    er.project(model)
    assert list(er.relax(model, exclude="layers.0.*").residuals) == [
        "layers.1.update_layer_1",
        "layers.1.update_layer_2",
    ]


def test_a_class_of_the_name_with_another_structure_is_left_to_the_families():
    class SEGNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Scaled("1x1o", "1x0e+1x1o")])

    assert list(er.relax(SEGNN()).residuals) == ["layers.0"]
    with pytest.raises(PlacementError, match="does not look like a SEGNN"):
        er.relax(SEGNN(), "segnn-cr")


def test_placements_by_name_find_a_segnn_inside_a_larger_model():
    for name in ("segnn-cr", "segnn-ace", "segnn-equivariant"):
        relaxation = er.relax(nn.ModuleDict({"a": Theirs(), "b": ours()}), name)
        assert len(relaxation) == 8
    assert SEGNNUpdates(er.MLP(hidden=[8, 4])) == SEGNNUpdates(er.MLP(hidden=(8, 4)))


def test_residuals_behind_a_gate_survive_what_a_model_goes_through():
    model, inputs = ours(), bodies()
    keys = list(model.state_dict())
    relaxation = er.relax(model)
    randomise(relaxation)
    expected = model(*inputs)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        er.relaxation_of(copied).set_gamma(0.5)
        assert not torch.allclose(copied(*inputs), expected)
        er.relaxation_of(copied).set_gamma(1.0)
        assert torch.equal(copied(*inputs), expected)
    assert torch.equal(model(*inputs), expected)
    with relaxation.strict():
        strict = model(*inputs)
    er.project(model)
    assert torch.equal(model(*inputs), strict)
    assert list(model.state_dict()) == keys
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_residuals_behind_a_gate_are_stored(tmp_path):
    model, inputs = ours(), bodies()
    relaxation = er.relax(model, SEGNNUpdates(er.MLP(hidden=[6, 5])))
    randomise(relaxation)
    er.save(model, tmp_path / "model.pt")
    other = ours()
    er.load(other, tmp_path / "model.pt")
    assert torch.equal(other(*inputs), model(*inputs))


@pytest.mark.parametrize("reentrant", [False, True])
def test_residuals_behind_a_gate_are_checkpointed(reentrant):
    model = Theirs()
    relaxation = er.relax(model)
    randomise(relaxation)
    x, y = torch.randn(5, 4, requires_grad=True), attributes()

    def gradients(run):
        model.zero_grad()
        run(x, y).square().sum().backward()
        return [p.grad.clone() for p in relaxation.residual_parameters().values()]

    plain = gradients(model)

    def stepwise(x, y):
        x = model.embedding_layer(x, y)
        for layer in model.layers:
            x = checkpoint(layer, x, y, use_reentrant=reentrant)
        return x

    for a, b in zip(plain, gradients(stepwise), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_penalties_see_what_a_residual_behind_a_gate_read():
    model, inputs = ours(), bodies()
    relaxation = er.relax(model)
    randomise(relaxation)
    method = er.Scheduled(relaxation, total_steps=3)
    model(*inputs)
    assert float(method.penalty()) > 0
    first = relaxation["layers.0.update_1"]
    model(*inputs)
    (kept,) = first.take_inputs()
    assert kept.shape == (5, 32)


def test_the_module_behind_the_gate_alone_has_nothing_to_add():
    model = ours()
    relaxation = er.relax(model)
    second = model.layers[0].update_2
    with pytest.raises(
        RelaxationStateError, match=r"layers\.0\.update_2 \(TensorProduct\).*layers\.0\.update_1"
    ):
        second(torch.randn(5, 16), attributes())
    with relaxation.strict():
        second(torch.randn(5, 16), attributes())
    model.layers[0].update_1(torch.randn(5, 32), attributes())
    second(x=torch.randn(5, 16), attributes=attributes())


@pytest.mark.slow
def test_residuals_behind_a_gate_compile_in_one_graph():
    torch.set_default_dtype(torch.float32)
    model, inputs = ours(), bodies()
    relaxation = er.relax(model)
    randomise(relaxation)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), model(*inputs))
    relaxation.set_gamma(0.5)
    torch.testing.assert_close(compiled(*inputs), model(*inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "placement", [None, "segnn-cr", er.Layers(include=("layers.*.message_*", "layers.*.update_*"))]
)
def test_n14_a_relaxed_segnn_in_strict_is_the_authors_to_the_bit(placement, training, dtype):
    author = ours().to(dtype).train(training)
    model = copy.deepcopy(author)
    relaxation = er.relax(model, placement)
    randomise(relaxation)
    sample = [x.to(dtype) if x.is_floating_point() else x for x in bodies()]
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded), relaxation.strict():
            assert torch.equal(model(*sample), author(*sample))
    assert not torch.allclose(model(*sample), author(*sample))


def test_the_summary_says_of_wrapped_products_that_they_are_inside_what_is_relaxed():
    network = Theirs()
    rows = {row.path: row for row in er.relax(network, "segnn-cr").summary().rows}
    assert rows["embedding_layer"].reason == "is no node update of a SEGNN"
    for path in ("layers.1.update_layer_1", "layers.1.update_layer_2"):
        inner = [row for key, row in rows.items() if key.startswith(f"{path}.")]
        assert inner
        assert all(path in row.reason for row in inner)
