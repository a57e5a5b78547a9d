"""SEGNN: the published network, its symmetries, and its two ways to compute messages."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from e3nn import o3
from equirelax_lab.models import SEGNN, SEGNNLayer, fast
from equirelax_lab.models.segnn import balanced_irreps
from golden_files import golden
from model_inputs import batch_graphs, bodies, full_graph, irregular_graph, random_orthogonal
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from equirelax.errors import RepresentationError
from equirelax.relaxation import relax

SIZES = [
    {"hidden": 8},
    {"hidden": 8, "l_max": 2, "lmax_attributes": 2},
    {"hidden": 8, "l_max": 1, "lmax_attributes": 2},
]


def released_names(model: SEGNN) -> dict[str, str]:
    """Own parameter -> its name in the released code, for all parameters that hold anything."""
    parts = {"embedding": "embedding_layer", "readout_1": "pre_pool1", "readout_2": "pre_pool2"}
    for i in range(len(model.layers)):
        for kind in ("message", "update"):
            for k in (1, 2):
                parts[f"layers.{i}.{kind}_{k}"] = f"layers.{i}.{kind}_layer_{k}"
    names = {}
    for own, parameter in model.named_parameters():
        path, _, kind = own.rpartition(".")
        if parameter.numel():
            names[own] = f"weight:{parts[path]}.{'tp.weight' if kind == 'weight' else 'biases'}"
    return names


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("joint", [True, False])
def test_is_the_published_network(training: bool, joint: bool) -> None:
    model = SEGNN(hidden=64, l_max=1, layers=4).train(training)
    arrays = golden("segnn_nbody")
    with torch.no_grad():
        for own, released in released_names(model).items():
            parameter = model.get_parameter(own)
            assert parameter.shape == arrays[released].shape
            parameter.copy_(arrays[released])
        given = (arrays[name] for name in ("positions", "velocities", "charges", "edge_index"))
        with fast.set_enabled(joint):
            displacement = model(*given)
        # e3nn's constants were rounded to float32 there
        assert (displacement - arrays["displacement"]).abs().max() < 1e-7


def test_sizes_of_the_paper() -> None:
    model = SEGNN()
    assert str(model.hidden) == "32x0e+32x1o"
    layer = model.layers[0]
    assert str(layer.message_1.irreps_in1) == "32x0e+32x1o+32x0e+32x1o+2x0e"
    assert str(layer.message_1.irreps_out) == "64x0e+32x1o"
    assert str(layer.update_1.irreps_in1) == "32x0e+32x1o+32x0e+32x1o"
    assert str(layer.update_2.irreps_out) == "32x0e+32x1o"
    assert str(balanced_irreps(64, 2, o3.Irreps("1x0e+1x1o+1x2e"))) == "20x0e+20x1o+20x2e"


def example(generator: torch.Generator, copies: int = 3, nodes: int = 4) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs of a batch of full graphs, and the number of every node's graph."""
    edge_index = batch_graphs(full_graph(nodes), nodes, copies)
    graph = torch.arange(copies).repeat_interleave(nodes)
    return (*bodies(generator, nodes * copies), edge_index), graph


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("determinant", [1, -1])
@pytest.mark.parametrize("training", [True, False])
def test_equivariance(
    size: dict[str, int], determinant: int, training: bool, generator: torch.Generator
) -> None:
    (x, v, q, edge_index), graph = example(generator)
    g = random_orthogonal(generator, determinant)
    model = SEGNN(**size, layers=2).train(training)
    expected = model(x, v, q, edge_index) @ g.T
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(model(x @ g.T, v @ g.T, q, edge_index), expected, rtol=0, atol=1e-12)

    centred = SEGNN(**size, layers=2, centre=True).train(training)
    shift = torch.randn(3, generator=generator, dtype=torch.float64)
    expected = centred(x, v, q, edge_index, graph) @ g.T
    moved = centred(x @ g.T + shift, v @ g.T, q, edge_index, graph)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


def test_translations_are_a_symmetry_only_when_centred(generator: torch.Generator) -> None:
    (x, v, q, edge_index), _ = example(generator)
    model = SEGNN(hidden=8, layers=1)
    assert (model(x + 1.0, v, q, edge_index) - model(x, v, q, edge_index)).abs().max() > 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_order_of_nodes_and_edges_does_not_matter(size: dict[str, int], generator: torch.Generator) -> None:
    (x, v, q, edge_index), graph = example(generator)
    model = SEGNN(**size, layers=2, centre=True)
    expected = model(x, v, q, edge_index, graph)
    order = torch.randperm(12, generator=generator)
    place = torch.argsort(order)
    edges = place[edge_index][:, torch.randperm(edge_index.shape[1], generator=generator)]
    permuted = model(x[order], v[order], q[order], edges, graph[order])
    torch.testing.assert_close(permuted, expected[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_is_its_graphs(size: dict[str, int], generator: torch.Generator) -> None:
    (x, v, q, edge_index), graph = example(generator)
    model = SEGNN(**size, layers=2, centre=True)
    together = model(x, v, q, edge_index, graph)
    single = [model(x[i : i + 4], v[i : i + 4], q[i : i + 4], full_graph(4)) for i in (0, 4, 8)]
    torch.testing.assert_close(together, torch.cat(single), rtol=0, atol=1e-12)


def outputs_and_gradients(model: SEGNN, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The output and the gradient of every parameter, for a fixed loss."""
    model.zero_grad()
    out = model(*inputs)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None and p.numel())]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("regular", [True, False])
def test_joint_messages_equal_the_modules(training: bool, regular: bool, generator: torch.Generator) -> None:
    inputs = example(generator)[0] if regular else (*bodies(generator, 11), irregular_graph(generator))
    model = SEGNN(hidden=12, layers=2).train(training)
    joint = outputs_and_gradients(model, inputs)
    with fast.set_enabled(False):
        by_modules = outputs_and_gradients(model, inputs)
    assert len(joint) == len(by_modules) == 1 + sum(p.numel() > 0 for p in model.parameters())
    for own, expected in zip(joint, by_modules, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES[:1])
def test_training_and_evaluation_agree(size: dict[str, int], generator: torch.Generator) -> None:
    inputs, _ = example(generator)
    model = SEGNN(**size, layers=2)
    for own, expected in zip(
        outputs_and_gradients(model.train(), inputs), outputs_and_gradients(model.eval(), inputs), strict=True
    ):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", ["message_1", "message_2", "gate", "update_1", "update_2"])
def test_hooks_see_every_call(path: str, generator: torch.Generator) -> None:
    inputs, _ = example(generator)
    model = SEGNN(hidden=8, layers=1)
    expected = model(*inputs)
    module = model.layers[0].get_submodule(path)
    seen: list[tuple[int, ...]] = []

    def double(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        seen.append(tuple(out.shape))
        return 2 * out

    handle = module.register_forward_hook(double)
    changed = model(*inputs)
    rows = {"message_1": [36], "message_2": [36], "gate": [36, 36, 12]}.get(path, [12])
    assert [shape[0] for shape in seen] == rows
    assert (changed - expected).abs().max() > 1e-6
    handle.remove()
    assert torch.equal(model(*inputs), expected)


def test_rows_of_a_hooked_message_are_the_edges(generator: torch.Generator) -> None:
    inputs, _ = example(generator)
    model = SEGNN(hidden=8, layers=1)
    read: list[Tensor] = []
    model.layers[0].message_1.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    embedded: list[Tensor] = []
    model.embedding.register_forward_hook(lambda module, args, out: embedded.append(out))
    model(*inputs)
    x, (source, target) = embedded[0], inputs[3]
    relative = inputs[0][source] - inputs[0][target]
    scalars = torch.cat([relative.norm(dim=1, keepdim=True), inputs[2][source] * inputs[2][target]], dim=1)
    expected = torch.cat([x[target], x[source], scalars], dim=1)
    torch.testing.assert_close(read[0], expected, rtol=0, atol=1e-13)


def test_derivatives_with_respect_to_positions(generator: torch.Generator) -> None:
    (x, v, q, edge_index), _ = example(generator, copies=2, nodes=3)
    model = SEGNN(hidden=4, layers=1)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x, v, q, edge_index), (x,))
    assert torch.autograd.gradgradcheck(lambda x: model(x, v, q, edge_index), (x,))
    # a force that is trained: its gradient passes through a second derivative
    force = torch.autograd.grad(model(x, v, q, edge_index).square().sum(), x, create_graph=True)[0]
    trained = torch.autograd.grad(force.square().sum(), model.layers[0].message_1.weight)[0]
    model.eval()
    force = torch.autograd.grad(model(x, v, q, edge_index).square().sum(), x, create_graph=True)[0]
    expected = torch.autograd.grad(force.square().sum(), model.layers[0].message_1.weight)[0]
    torch.testing.assert_close(trained, expected, rtol=1e-10, atol=1e-12)


def test_forward_mode_in_evaluation(generator: torch.Generator) -> None:
    (x, v, q, edge_index), _ = example(generator)
    model = SEGNN(hidden=8, layers=2).eval()
    direction = torch.randn_like(x)
    _, tangent = torch.func.jvp(lambda x: model(x, v, q, edge_index), (x,), (direction,))
    h = 1e-6
    difference = (model(x + h * direction, v, q, edge_index) - model(x - h * direction, v, q, edge_index)) / (
        2 * h
    )
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-8)


class Called(TorchDispatchMode):
    """Names of the operations that run, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("placement", [{"include": "*message_*"}, {"placement": "segnn-cr"}])
@pytest.mark.parametrize("training", [True, False])
def test_strict_is_the_authors_network_to_the_bit(
    placement: dict[str, str], training: bool, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """N14: hooked modules left the network's fast path, also where the relaxation was switched off."""
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in example(generator)[0])
    model = SEGNN(hidden=8, layers=2).to(dtype).train(training)
    outputs_and_gradients(model, inputs)  # constants are cast at their first use
    with Called() as own:
        expected = outputs_and_gradients(model, inputs)
    relaxation = relax(model, **placement)
    relaxation.set_gamma(0.5)
    with relaxation.strict(), Called() as found:
        strict = outputs_and_gradients(model, inputs)
    assert found.names == own.names
    for a, b in zip(strict, expected, strict=True):
        assert torch.equal(a, b)


def test_relaxed_updates_leave_the_messages_on_their_fast_path(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N14: only hooks on the message's own modules count, neither those of the updates nor children of any module."""
    inputs, _ = example(generator)
    model = SEGNN(hidden=8, layers=2)
    relax(model, "segnn-cr").set_gamma(0.5)
    for layer in model.layers:
        layer.update_2.register_forward_pre_hook(lambda module, args: None)
        layer.update_1.register_forward_hook(lambda module, args, out: None)
        for module in (layer.message_1, layer.message_2, layer.gate):
            module.add_module("a_child", nn.Linear(2, 2))

    def refuse(layer: SEGNNLayer, x: Tensor, edges: object) -> Tensor:
        raise AssertionError("the messages are computed module by module")

    monkeypatch.setattr(SEGNNLayer, "_by_modules", refuse)
    model(*inputs).sum().backward()
    with torch.no_grad():
        model.eval()(*inputs)
    model.layers[1].message_2.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(AssertionError):
        model(*inputs)


@pytest.mark.parametrize("training", [True, False])
def test_torch_func_sees_through_every_mode(training: bool, generator: torch.Generator) -> None:
    """Also where gradients are off or the model trains: then the hand-written derivatives would stand in the way."""
    (x, v, q, edge_index), _ = example(generator)
    model = SEGNN(hidden=8, layers=2).train(training)
    directions = torch.randn(2, *x.shape)

    def call(x: Tensor) -> Tensor:
        return model(x, v, q, edge_index)

    expected = torch.stack([torch.autograd.functional.jvp(call, x, d)[1] for d in directions])
    with torch.no_grad():
        found = torch.stack([torch.func.jvp(call, (x,), (d,))[1] for d in directions])
        rows = torch.func.vmap(call)(torch.stack([x, x + directions[0]]))
        torch.testing.assert_close(rows, torch.stack([call(x), call(x + directions[0])]))
    torch.testing.assert_close(found, expected)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(call(leaf).sum(), leaf)
    per_sample = torch.func.vmap(torch.func.grad(lambda x: call(x).sum()))(x[None])
    torch.testing.assert_close(per_sample[0], slope)
    with forward_ad.dual_level():
        _, tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(x, directions[0])))
    torch.testing.assert_close(tangent, expected[0])


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated
def test_traced_without_gradients(generator: torch.Generator) -> None:
    inputs, _ = example(generator)
    model = SEGNN(hidden=8, layers=1).eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, inputs)
        torch.testing.assert_close(traced(*inputs), model(*inputs))
    assert "PythonOp" not in str(traced.inlined_graph)


def test_evaluation_without_gradients_is_as_fast_as_inference_mode(generator: torch.Generator) -> None:
    """By the number of operations; they were twice as many and took twice as long."""
    inputs, _ = example(generator)
    model = SEGNN(hidden=8, layers=2).eval()
    counts = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            model(*inputs)
        counts.append(
            sum(e.count for e in profile.key_averages() if e.key in ("aten::cat", "aten::mul", "aten::mm"))
        )
    assert counts[0] == counts[1]


def test_inference_mode_before_training(generator: torch.Generator) -> None:
    inputs, _ = example(generator)
    model = SEGNN(hidden=8, layers=1)
    with torch.inference_mode():
        expected = model.eval()(*inputs).clone()
    out = model.train()(*inputs)
    out.sum().backward()
    torch.testing.assert_close(out.detach(), expected.clone(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training: bool, generator: torch.Generator) -> None:
    inputs, _ = example(generator)
    inputs = (*(x.float() for x in inputs[:3]), inputs[3])
    model = SEGNN(hidden=16, layers=2).float().train(training)
    expected = model(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(*inputs)
        out.float().sum().backward()
    assert (out.float() - expected).abs().max() < 2e-2 * expected.abs().max()


@pytest.mark.parametrize("size", SIZES[:2])
def test_float32_model_cast_to_float64_is_exactly_equivariant(
    size: dict[str, int], generator: torch.Generator
) -> None:
    torch.set_default_dtype(torch.float32)
    model = SEGNN(**size, layers=2).double()
    (x, v, q, edge_index), _ = example(generator)
    g = random_orthogonal(generator, -1)
    expected = model(x, v, q, edge_index) @ g.T
    torch.testing.assert_close(model(x @ g.T, v @ g.T, q, edge_index), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("size", SIZES[:2])
def test_copies(clone: object, size: dict[str, int], generator: torch.Generator) -> None:
    inputs, _ = example(generator)
    model = SEGNN(**size, layers=1)
    expected = outputs_and_gradients(model, inputs)
    other = clone(model)  # type: ignore[operator]
    for own, theirs in zip(outputs_and_gradients(other, inputs), expected, strict=True):
        assert torch.equal(own, theirs)
    assert list(other.state_dict()) == list(model.state_dict())
    other.layers[0].message_1.weight.data.zero_()
    assert torch.equal(model(*inputs), expected[0])


def test_degenerate_inputs(generator: torch.Generator) -> None:
    model = SEGNN(hidden=8, layers=1, centre=True)
    x, v, q = bodies(generator, 4)
    out = model(torch.zeros_like(x), torch.zeros_like(v), q, full_graph(4))
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model(x, v, q, torch.zeros(2, 0, dtype=torch.long)).isfinite().all()


def test_scalar_features_only(generator: torch.Generator) -> None:
    inputs, _ = example(generator)
    assert SEGNN("6x0e", layers=1)(*inputs).shape == (12, 3)


def test_errors() -> None:
    with pytest.raises(RepresentationError, match="lmax_attributes"):
        SEGNN(lmax_attributes=0)
    with pytest.raises(RepresentationError, match="0e"):
        SEGNN("4x1o+4x0e")


@pytest.mark.slow
def test_compiled_equals_eager(generator: torch.Generator) -> None:
    inputs, _ = example(generator)
    model = SEGNN(hidden=8, layers=1)
    eager = outputs_and_gradients(model, inputs)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    model.zero_grad()
    out = compiled(*inputs)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None and p.numel()]
    for own, expected in zip([out.detach(), *grads], eager, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-12)
