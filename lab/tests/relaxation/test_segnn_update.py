"""SEGNN's node update with ACE's residuals, against a slow reference: where each is added, what the next reads, its widths."""

from __future__ import annotations

import math

import torch
from equirelax_lab.models import SEGNN
from equirelax_lab.tasks.registry import build_task, defaults
from torch import Tensor

import equirelax as er

D = 128


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def perceptron(residual: er.relaxation.Residual, x: Tensor) -> Tensor:
    """Row by row: three linear maps with bias, GELU between them, times gamma."""
    rows = []
    for row in x:
        for i, layer in enumerate(residual.map.layers):
            row = layer.weight @ row + layer.bias
            row = gelu(row) if i < 2 else row
        rows.append(residual.gamma * row)
    return torch.stack(rows)


def test_the_first_residual_stands_behind_the_gate_and_the_second_update_reads_the_sum() -> None:
    torch.manual_seed(0)
    config = defaults("nbody", "segnn", "ace")
    model = SEGNN(64, 1, layers=1).double()
    relaxation = er.relax(model, build_task(config).placement())
    relaxation.set_gamma(0.5)
    first, second = relaxation.residuals.values()
    widths = [[layer.weight.shape[::-1] for layer in r.map.layers] for r in (first, second)]
    assert widths == [
        [(2 * D, 2 * D), (2 * D, D), (D, D)],
        [(D, 2 * D), (2 * D, D), (D, D)],
    ]

    layer = model.layers[0]
    x, attributes = torch.randn(5, D).double(), torch.randn(5, 4).double()
    attributes[:, 0] = 1
    edge_index = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])
    positions, charges = torch.randn(5, 3).double(), torch.ones(5, 1).double()
    edges = model._edges(positions, charges, edge_index)
    relaxed = layer(x, edges, attributes)

    with relaxation.strict():
        received = layer._by_modules(x.t(), edges).t()
        read = torch.cat([x, received], dim=1)
        gated = layer.gate(layer.update_1(read, attributes)) + perceptron(first, read)
        expected = x + layer.update_2(gated, attributes) + perceptron(second, gated)
    torch.testing.assert_close(relaxed, expected, rtol=1e-10, atol=1e-10)


def test_the_published_residuals_have_the_published_number_of_weights() -> None:
    config = defaults("nbody", "segnn", "ace")
    model = SEGNN(64, 1, layers=4)
    strict = sum(p.numel() for p in model.parameters())
    relaxation = er.relax(model, build_task(config).placement())
    added = sum(p.numel() for p in model.parameters()) - strict
    assert added - len(relaxation.residuals) == 790_528  # less the strengths
