"""EGNO: the published network, its symmetries, and its parts against plain formulas."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equirelax_lab.models import EGNO, EGNOLayer
from equirelax_lab.models.egno import SHIFT_LIMIT, TemporalConvolution
from equirelax_lab.models.exact import Exact
from golden_files import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from model_inputs import batch_graphs, bodies, full_graph, random_orthogonal
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax.symmetry import E, positions, vector
from equirelax.testing import ModelConformance

PARTS = {
    "edge_message_net.scalar_net.mlp": "message",
    "coord_net.mlp": "coordinate",
    "node_v_net.mlp": "velocity",
    "node_net.mlp": "update",
    "time_conv_modules": "time_features",
    "time_conv_x_modules": "time_vectors",
    "t_conv.weights1": "weight",
}


def published_weights(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released network's weights under our names."""
    state = {}
    for released, array in arrays.items():
        if not released.startswith("weight:"):
            continue
        own = released.removeprefix("weight:")
        for theirs, ours in PARTS.items():
            own = own.replace(theirs, ours)
        if own.endswith("message.0.weight"):  # there the squared distance stands first, here after the ends
            ends = 2 * array.shape[0]
            array = torch.cat([array[:, 1 : 1 + ends], array[:, :1], array[:, 1 + ends :]], dim=1)
        state[own] = array.double()
    return state


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("watched", [True, False])
def test_is_the_published_network(training: bool, watched: bool) -> None:
    arrays = golden("egno")
    model = EGNO(hidden=64, layers=4, in_features=2, edge_features=2, steps=5, modes=2, time_features=32)
    model.load_state_dict(published_weights(arrays))  # strict: every published weight has its place
    model.train(training)
    if watched:  # modules are then called as they stand
        for layer in model.layers:
            layer.message[0].register_forward_hook(lambda *_: None)
    graph = torch.unique(arrays["mean_positions"], dim=0, return_inverse=True)[1]
    assert graph.unique().numel() == 2
    # the time embedding's frequencies were computed in float32 there; with the same rounding all digits agree
    rounded = torch.exp(torch.arange(16, dtype=torch.float32) * -(math.log(10000) / 15)).double()
    angles = torch.arange(5)[:, None] * rounded
    for times, tolerance in (
        (model._times, 1e-7),
        (Exact(torch.cat([angles.sin(), angles.cos()], 1)), 1e-13),
    ):
        model._times = times
        with torch.no_grad():
            states = model.states(
                arrays["positions"],
                arrays["velocities"],
                arrays["features"],
                arrays["edge_index"].flip(0),  # the receiver stands first there
                arrays["edge_features"],
                graph,
            )
        for state, name in zip(states, ("out_positions", "out_velocities", "out_features"), strict=True):
            assert (state.flatten(0, 1) - arrays[name]).abs().max() < tolerance


def sample(generator: torch.Generator) -> tuple[Tensor, ...]:
    """12 nodes in three full graphs, 2 node features and 2 edge features."""
    x, v, _ = bodies(generator, 12)
    edge_index = batch_graphs(full_graph(4), 4, 3)
    features = torch.randn(12, 2, generator=generator)
    edge_features = torch.randn(edge_index.shape[1], 2, generator=generator)
    return x, v, features, edge_index, edge_features, torch.arange(3).repeat_interleave(4)


def network(**sizes: int) -> EGNO:
    torch.manual_seed(3)
    return EGNO(**{"hidden": 8, "layers": 2, "steps": 5, **sizes})


class TestConformance(ModelConformance):
    # nothing reads h after the last layer; frequency 0 has no imaginary part
    unused = ("layers.1.update.*",)

    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        inputs = sample(torch.Generator().manual_seed(0))
        group = E(3)
        where = positions(group)
        return network(), inputs, (where, vector(group), None, None, None, None), where

    def permute(
        self, sample: Any, generator: torch.Generator
    ) -> tuple[Any, Callable[[Tensor], Tensor]] | None:
        x, v, features, edge_index, edge_features, graph = sample
        order = torch.randperm(12, generator=generator)
        back = torch.argsort(order)
        edges = torch.randperm(edge_index.shape[1], generator=generator)
        moved = back[edge_index][:, edges]
        return (x[order], v[order], features[order], moved, edge_features[edges], graph[order]), (
            lambda y: y[back]
        )


@pytest.mark.parametrize("determinant", [1, -1])
def test_equivariance_far_from_the_origin(determinant: int, generator: torch.Generator) -> None:
    """E(3), every output; features, which the audit does not see, are invariant."""
    x, v, *rest = sample(generator)
    g = random_orthogonal(generator, determinant)
    shift = 10 * torch.randn(3, generator=generator)
    model = network()
    expected = model.states(x, v, *rest)
    moved = model.states(x @ g.T + shift, v @ g.T, *rest)
    assert (expected[0] - x).abs().max() > 1e-2
    torch.testing.assert_close(moved[0], expected[0] @ g.T + shift, rtol=0, atol=1e-9)
    torch.testing.assert_close(moved[1], expected[1] @ g.T, rtol=0, atol=1e-9)
    torch.testing.assert_close(moved[2], expected[2], rtol=0, atol=1e-9)


def test_a_batch_is_its_graphs(generator: torch.Generator) -> None:
    x, v, features, edge_index, edge_features, graph = sample(generator)
    model = network()
    together = model(x, v, features, edge_index, edge_features, graph)
    assert together.shape == (12, 5, 3)
    for i in range(3):
        nodes, edges = slice(4 * i, 4 * i + 4), slice(12 * i, 12 * i + 12)
        alone = model(x[nodes], v[nodes], features[nodes], full_graph(4), edge_features[edges])
        torch.testing.assert_close(together[nodes], alone, rtol=1e-12, atol=1e-12)
    # numbers of graphs need not be in order
    renamed = torch.tensor([7, 0, 4])[graph]
    torch.testing.assert_close(model(x, v, features, edge_index, edge_features, renamed), together)


def test_steps_differ_and_hear_of_each_other(generator: torch.Generator) -> None:
    inputs = sample(generator)
    model = network()
    out = model(*inputs)
    assert (out[:, 1:] - out[:, :-1]).abs().max() > 1e-3
    with torch.no_grad():
        for convolution in (*model.time_features, *model.time_vectors):
            convolution.weight.zero_()
    without = model(*inputs)
    assert (out - without).abs().max() > 1e-3


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 9),
    modes=st.integers(1, 5),
    channels=st.integers(1, 4),
    rest=st.lists(st.integers(0, 3), min_size=1, max_size=2),
    seed=st.integers(0, 2**16),
)
def test_temporal_convolution_is_the_fourier_formula(
    steps: int, modes: int, channels: int, rest: list[int], seed: int
) -> None:
    modes = min(modes, steps // 2 + 1)
    generator = torch.Generator().manual_seed(seed)
    convolution = TemporalConvolution(channels, steps, modes).double()
    with torch.no_grad():
        convolution.weight.normal_(generator=generator)
    x = torch.randn(steps, *rest, channels, generator=generator, dtype=torch.float64)
    y = convolution(x)
    assert y.shape == x.shape
    if not x.numel():
        return
    spectrum = torch.fft.rfft(x, dim=0)
    weight = torch.view_as_complex(convolution.weight.detach())
    mixed = torch.zeros_like(spectrum)
    for k in range(modes):
        mixed[k] = spectrum[k] @ weight[:, :, k]
    torch.testing.assert_close(y, torch.fft.irfft(mixed, n=steps, dim=0), rtol=1e-10, atol=1e-10)


def test_temporal_convolution_is_exact_after_float(generator: torch.Generator) -> None:
    """Constants are not rounded for good by a stay in float32, as buffers would be."""
    model, inputs = network(), sample(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.float())
    expected = model(*inputs)
    assert model.float()(*(t.float() if t.is_floating_point() else t for t in inputs)).dtype == torch.float32
    torch.testing.assert_close(model.double()(*inputs), expected, rtol=0, atol=0)


def star(scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, x, v of 4 nodes and edges from three to the first, `scale` long."""
    x = scale * torch.tensor([[0.0, 0.0, 0.0], [3.0, 1.0, 0.5], [1.0, 2.0, 3.0], [1.0, -1.0, 4.0]])
    edges = torch.tensor([[1, 2, 3], [0, 0, 0]])
    return torch.zeros(4, 8), x, torch.zeros(4, 3), edges


def test_long_steps_are_shortened_equivariantly(generator: torch.Generator) -> None:
    """The published limit is one of the components, which rotations do not respect."""
    torch.manual_seed(0)
    layer = EGNOLayer(8)
    layer.coordinate[2].bias.data.fill_(-1.0)  # shifts of about the edges' length
    h, x, v, edges = star(1e4)
    x.requires_grad_()
    _, moved = layer(h, x, v, edges)
    assert float((moved[0] - x[0]).norm().detach()) == pytest.approx(SHIFT_LIMIT)
    g = random_orthogonal(generator, -1)
    _, turned = layer(h, x @ g.T, v, edges)
    torch.testing.assert_close(turned, moved @ g.T, rtol=0, atol=1e-9)
    moved.sum().backward()
    assert torch.isfinite(x.grad).all()

    h, x, v, edges = star(1.0)
    _, moved = layer(h, x, v, edges)
    layer.limit = None
    assert torch.equal(layer(h, x, v, edges)[1], moved)


def test_gradients(generator: torch.Generator) -> None:
    x, v, features, _, edge_features, _ = sample(generator)
    model = network(layers=1)
    tensors = [t[:4].requires_grad_() for t in (x, v, features)]
    edges, few = full_graph(4), edge_features[:12]
    assert torch.autograd.gradcheck(lambda x, v, f: model(x, v, f, edges, few), tensors)


def test_zero_velocities_and_coinciding_nodes_are_fine(generator: torch.Generator) -> None:
    x, v, *rest = sample(generator)
    model = network()
    still = [t.clone().requires_grad_() for t in (torch.zeros_like(x), torch.zeros_like(v))]
    model(*still, *rest).square().sum().backward()
    for tensor in still:
        assert torch.isfinite(tensor.grad).all()


def test_a_layer_is_called_once_for_all_steps(generator: torch.Generator) -> None:
    """What a placement hooks: `layer(h, x, v, edge_index, edge_features) -> (h, x)`, rows time by time."""
    inputs, model = sample(generator), network()
    seen: list[Any] = []
    for layer in model.layers:
        assert layer.hidden == 8
        layer.register_forward_hook(lambda module, args, output: seen.append((args, output)))
    model(*inputs)
    assert len(seen) == 2
    (h, x, v, edges, edge_features), (new_h, new_x) = seen[0]
    assert h.shape == new_h.shape == (60, 8)
    assert x.shape == v.shape == new_x.shape == (60, 3)
    assert edges.shape == (2, 5 * 36)
    assert edge_features.shape == (5 * 36, 2)
    assert int(edges.max()) == 59


def test_works_without_edges_and_edge_features(generator: torch.Generator) -> None:
    x, v, features, *_ = sample(generator)
    model = network(edge_features=0)
    out = model(x, v, features, torch.zeros(2, 0, dtype=torch.long))
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(clone: Callable[[EGNO], EGNO], generator: torch.Generator) -> None:
    inputs, model = sample(generator), network()
    expected = model(*inputs)
    assert torch.equal(clone(model)(*inputs), expected)


def test_sizes_of_the_paper() -> None:
    model = EGNO()
    assert (len(model.layers), model.layers[0].hidden, model.steps) == (6, 128, 5)
    assert model.time_features[0].weight.shape == (128, 128, 2, 2)
    assert model.time_vectors[0].weight.shape == (2, 2, 2, 2)
    assert model.embedding.in_features == 2 + 32


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 5, "modes": 4}, "5 steps have 3 frequencies"),
        ({"modes": 0}, "must be 1 to"),
        ({"time_features": 7}, "even"),
    ],
)
def test_wrong_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(RepresentationError, match=message):
        EGNO(**sizes)


def test_wrong_features_are_refused(generator: torch.Generator) -> None:
    x, v, features, edge_index, edge_features, _ = sample(generator)
    with pytest.raises(RepresentationError, match="0 edge features, but was built with"):
        network()(x, v, features, edge_index)
    with pytest.raises(RepresentationError, match="got 3 node"):
        network()(x, v, torch.cat([features, x[:, :1]], 1), edge_index, edge_features)


@pytest.mark.slow
def test_compiled_equals_eager(generator: torch.Generator) -> None:
    inputs, model = sample(generator), network(layers=1)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-10, atol=1e-12)
