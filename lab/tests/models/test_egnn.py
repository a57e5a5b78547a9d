"""EGNN: its equations, symmetries and errors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from equirelax_lab.models import EGNN, EGNNLayer
from model_inputs import batch_graphs, bodies, full_graph, irregular_graph, random_orthogonal
from torch import Tensor

from equirelax.errors import RepresentationError


def example(
    generator: torch.Generator, edges: int = 2
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """12 nodes in three full graphs."""
    x, v, q = bodies(generator, 12)
    edge_index = batch_graphs(full_graph(4), 4, 3)
    features = (
        torch.randn(edge_index.shape[1], edges, generator=generator, dtype=torch.float64) if edges else None
    )
    return x, v, q, edge_index, features


def network(edges: int = 2, **sizes: int) -> EGNN:
    """A small network whose coordinates move visibly."""
    model = EGNN(**{"hidden": 6, "layers": 2, **sizes}, edge_features=edges)
    for layer in model.layers:
        torch.nn.init.normal_(layer.coordinate[2].weight)
    return model


@pytest.mark.parametrize("determinant", [1, -1])
@pytest.mark.parametrize("with_velocities", [True, False])
def test_equivariance(determinant: int, with_velocities: bool, generator: torch.Generator) -> None:
    x, v, q, edge_index, edges = example(generator)
    g = random_orthogonal(generator, determinant)
    shift = torch.randn(3, generator=generator, dtype=torch.float64)
    model = network()
    expected = model(x, v if with_velocities else None, q, edge_index, edges) @ g.T + shift
    moved = model(x @ g.T + shift, v @ g.T if with_velocities else None, q, edge_index, edges)
    assert (expected - (x @ g.T + shift)).abs().max() > 1e-2
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-12)


def test_layer_is_its_equations(generator: torch.Generator) -> None:
    x, v, _ = bodies(generator, 11)
    edge_index = irregular_graph(generator)
    edges = torch.randn(17, 2, generator=generator, dtype=torch.float64)
    h = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    layer = network().layers[0]
    new_h, new_x = layer(h, x, v, edge_index, edges)
    for i in range(11):
        messages, shifts = [torch.zeros(6)], []
        for e, (j, target) in enumerate(edge_index.t().tolist()):
            if target == i:
                squared = (x[i] - x[j]).square().sum()[None]
                message = layer.message(torch.cat([h[i], h[j], squared, edges[e]]))
                messages.append(message)
                shifts.append((x[i] - x[j]) * layer.coordinate(message))
        mean = torch.stack(shifts).mean(0) if shifts else torch.zeros(3)
        torch.testing.assert_close(new_x[i], x[i] + mean + layer.velocity(h[i]) * v[i])
        torch.testing.assert_close(new_h[i], h[i] + layer.update(torch.cat([h[i], sum(messages)])))


def test_order_of_nodes_and_edges_does_not_matter(generator: torch.Generator) -> None:
    x, v, q, edge_index, edges = example(generator)
    model = network()
    order, edge_order = torch.randperm(12, generator=generator), torch.randperm(36, generator=generator)
    permuted = torch.argsort(order)[edge_index][:, edge_order]
    out = model(x[order], v[order], q[order], permuted, edges[edge_order])
    torch.testing.assert_close(out, model(x, v, q, edge_index, edges)[order], rtol=1e-12, atol=1e-12)


def test_a_batch_is_its_graphs(generator: torch.Generator) -> None:
    x, v, q, edge_index, _ = example(generator)
    model = network(edges=0)
    single = [model(x[i : i + 4], v[i : i + 4], q[i : i + 4], full_graph(4)) for i in (0, 4, 8)]
    torch.testing.assert_close(model(x, v, q, edge_index), torch.cat(single), rtol=1e-12, atol=1e-12)


def test_gradients(generator: torch.Generator) -> None:
    x, v, q = bodies(generator, 3)
    model = network(edges=0, layers=1)
    tensors = [t.requires_grad_() for t in (x, v, q)]
    assert torch.autograd.gradcheck(lambda x, v, q: model(x, v, q, full_graph(3)), tensors)


def test_coordinates_start_calm(generator: torch.Generator) -> None:
    x, _, q, edge_index, _ = example(generator)
    assert (EGNN(layers=4)(x, None, q, edge_index) - x).abs().max() < 0.1


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(clone: object, generator: torch.Generator) -> None:
    inputs = example(generator)
    model = network()
    assert torch.equal(clone(model)(*inputs), model(*inputs))  # type: ignore[operator]


def test_errors(generator: torch.Generator) -> None:
    x, v, q, edge_index, _ = example(generator)
    with pytest.raises(RepresentationError, match="0 edge features"):
        network()(x, v, q, edge_index)
    with pytest.raises(RepresentationError, match="at least 1"):
        EGNN(layers=0)


@pytest.mark.slow
def test_compiled_equals_eager(generator: torch.Generator) -> None:
    inputs = example(generator)
    model = network(layers=1)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("skip", [True, False])
def test_messages_by_nodes_are_messages_by_edges(skip: bool, generator: torch.Generator) -> None:
    """The first map is taken per node unless it is watched; outputs and gradients are the same."""
    h = torch.randn(11, 6, generator=generator)
    x, v, _ = bodies(generator, 11)
    edge_index, edges = irregular_graph(generator), torch.randn(17, 2, generator=generator)
    layer = EGNNLayer(6, 2, skip=skip)
    seen: list[Tensor] = []

    def run() -> list[Tensor]:
        layer.zero_grad()
        inputs = [t.clone().requires_grad_() for t in (h, x, v)]
        new_h, new_x = layer(*inputs, edge_index, edges)
        (new_h.square().sum() + new_x.square().sum()).backward()
        return [new_h, new_x, *(t.grad for t in inputs), *(p.grad for p in layer.parameters())]

    fast = run()
    handle = layer.message[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    slow = run()
    assert [t.shape for t in seen] == [(17, 15)]
    handle.remove()
    replaced = copy.deepcopy(layer)
    replaced.message[0] = torch.nn.Sequential(layer.message[0])
    torch.testing.assert_close(replaced(h, x, v, edge_index, edges), (slow[0], slow[1]))
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
