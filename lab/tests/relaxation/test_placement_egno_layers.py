"""ACE's residuals on EGNO, against a slow reference: one node of one time after the other, and batch norms by the book."""

from __future__ import annotations

import torch
from equirelax_lab.models import EGNO
from equirelax_lab.placements import EGNOLayers
from torch import Tensor, nn

import equirelax as er
from equirelax.relaxation.kinds.stream import RowNorm, SpectralLinear

NODES, STEPS, HIDDEN, LAYERS, EPS = 4, 3, 8, 2, 1e-5
EDGES = torch.tensor([[0, 1, 1, 2, 3, 0], [1, 0, 2, 1, 0, 3]])


def network(seed: int = 0) -> tuple[EGNO, tuple[Tensor, ...]]:
    torch.manual_seed(seed)
    model = EGNO(HIDDEN, LAYERS, in_features=2, edge_features=1, steps=STEPS, modes=2, time_features=4)
    inputs = (
        torch.randn(NODES, 3),
        torch.randn(NODES, 3),
        torch.randn(NODES, 2),
        EDGES,
        torch.rand(EDGES.shape[1], 1),
    )
    return model.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs)


def normed(rows: list[Tensor], norm: RowNorm) -> list[Tensor]:
    """Batch norm in training mode: every column less its mean, over the root of its variance over all rows."""
    mean = sum(rows) / len(rows)
    variance = sum((row - mean) ** 2 for row in rows) / len(rows)
    return [norm.weight * (row - mean) / (variance + EPS) ** 0.5 + norm.bias for row in rows]


def spectral(weight: Tensor) -> Tensor:
    return weight / torch.linalg.svdvals(weight)[0]


def slow(model: EGNO, relaxation: er.relaxation.Relaxation, inputs: tuple[Tensor, ...]) -> Tensor:
    """The relaxed EGNO, node by node: recipes' words for its residuals, the model's own layers for the rest."""
    positions, velocities, features, edge_index, edge_features = inputs
    strict = {name: module for name, module in model.named_children()}
    times = model._times.like(features)
    embedded = [
        torch.cat([features[n], times[t]]) for t in range(STEPS) for n in range(NODES)
    ]  # what the embedding reads, all nodes of a time together
    h = torch.stack([strict["embedding"].weight @ e + strict["embedding"].bias for e in embedded])
    mean = positions.mean(0)
    x = torch.stack([positions] * STEPS).flatten(0, 1)
    v = torch.stack([velocities] * STEPS).flatten(0, 1)
    edges = torch.cat([edge_index + NODES * t for t in range(STEPS)], 1)
    stream: list[Tensor] = []
    for i in range(LAYERS):
        shaped = h.view(STEPS, NODES, HIDDEN)
        h = h + nn.functional.leaky_relu(model.time_features[i](shaped)).flatten(0, 1)
        vectors = torch.stack([x - mean, v], -1).view(STEPS, NODES, 3, 2)
        vectors = (vectors + model.time_vectors[i](vectors)).flatten(0, 1)
        x, v = vectors[..., 0] + mean, vectors[..., 1]
        with relaxation.strict():
            after_h, after_x = model.layers[i](h, x, v, edges, edge_features.repeat(STEPS, 1))
        on_h, on_x = relaxation[f"layers.{i}:h"], relaxation[f"layers.{i}:x"]
        # on h: a plain linear map of [features, time embedding], then in every layer batch norm -> spectral-norm linear
        if i == 0:
            stream = [on_h.map.start.weight @ e + on_h.map.start.bias for e in embedded]
        weight = spectral(on_h.map.linear.weight)
        stream = [weight @ s + on_h.map.linear.bias for s in normed(stream, on_h.map.norm)]
        # on x: Linear(3, 3) -> batch norm -> spectral Linear(3, 128) -> SiLU -> batch norm -> spectral Linear(128, 3), of the x
        # that this layer reads, at every time
        first, norm_1, second, _, norm_2, last = on_x.map.layers
        rows = [first.weight @ row + first.bias for row in x]
        rows = [spectral(second.weight) @ row + second.bias for row in normed(rows, norm_1)]
        rows = normed([row * torch.sigmoid(row) for row in rows], norm_2)
        rows = [spectral(last.weight) @ row + last.bias for row in rows]
        h = after_h + on_h.gamma * torch.stack(stream)
        x = after_x + on_x.gamma * torch.stack(rows)
    return x.view(STEPS, NODES, 3).transpose(0, 1)


def test_every_layer_is_what_the_recipe_says_node_by_node() -> None:
    model, inputs = network()
    relaxation = er.relax(model, EGNOLayers())
    assert (
        sum(r.map.layers[2].weight.shape == (128, 3) for k, r in relaxation.residuals.items() if ":x" in k)
        == 2
    )
    relaxation.set_gamma(0.7)
    with torch.no_grad():
        for module in model.modules():  # the estimates of largest singular values made exact
            if isinstance(module, SpectralLinear):
                module.reset_estimate()
                for _ in range(200):
                    module.iterate()
    model.train()
    expected = slow(model, relaxation, inputs)
    torch.testing.assert_close(model(*inputs), expected, rtol=1e-9, atol=1e-9)
    with relaxation.strict():
        assert not torch.allclose(model(*inputs), expected, atol=1e-3)


def test_there_are_two_strengths_for_every_layer_and_gamma_0_is_the_strict_network() -> None:
    model, inputs = network(1)
    model.eval()
    strict = model(*inputs)
    relaxation = er.relax(model, "egno-ace")
    assert list(relaxation.residuals) == ["layers.0:h", "layers.0:x", "layers.1:h", "layers.1:x"]
    torch.testing.assert_close(model(*inputs), strict)
    er.project(model)
    assert torch.equal(model(*inputs), strict)


def test_five_power_iterations_a_forward_and_a_plain_start() -> None:
    model, inputs = network(2)
    relaxation = er.relax(model, EGNOLayers())
    relaxation.set_gamma(1.0)
    start = relaxation["layers.0:h"].map.start
    assert type(start) is nn.Linear
    layer = relaxation["layers.1:x"].map.layers[2]
    left = layer.left.clone()
    model.train()
    model(*inputs)
    for _ in range(5):
        right = nn.functional.normalize(layer.weight.T @ left, dim=0)
        left = nn.functional.normalize(layer.weight @ right, dim=0)
    torch.testing.assert_close(layer.left, left)
    before = layer.left.clone()
    model.eval()
    model(*inputs)
    assert torch.equal(layer.left, before)
