"""Equiformer: its formulas, its symmetry strict and projected, its smoothness, and what relaxation finds in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from e3nn import o3
from equirelax_lab.models import Equiformer
from equirelax_lab.models.molecular import EdgeGeometry, smooth_softmax
from equirelax_lab.models.radial import GaussianBasis, RadialWeights, envelope
from molecule_inputs import SIZES, equiformer, molecules
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import RepresentationError
from equirelax.symmetry import E, positions, trivial
from equirelax.testing import ModelConformance


class _Conformance(ModelConformance):
    hidden = "8x0e+4x1o+4x2e"

    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        group = E(3)
        model = equiformer(hidden=self.hidden)
        return model, molecules(), (None, positions(group), None), trivial(group, len(SIZES))

    def permute(self, sample: Any, generator: torch.Generator) -> tuple[Any, Callable[[Tensor], Tensor]]:
        order = torch.randperm(len(sample[0]), generator=generator)
        return tuple(entry[order] for entry in sample), lambda output: output


class TestEquiformer(_Conformance):
    pass


@pytest.mark.slow  # its sister stands for it
class TestBothParities(_Conformance):
    hidden = "8x0e+4x1e+4x1o+2x2o"


@pytest.mark.slow  # its sister stands for it
class TestDegreeOne(_Conformance):
    hidden = "8x0e+4x1o"


def test_attention_is_a_softmax_with_the_envelope() -> None:
    numbers, where, batch = molecules()
    model = equiformer()
    edges = model.geometry(where, batch)
    z = 3 * torch.randn(2, len(edges.source))
    found = smooth_softmax(z, edges, len(numbers))
    for e in range(len(edges.source)):
        mine = (edges.target == edges.target[e]).nonzero().flatten()
        weights = edges.envelope[mine] * z[:, mine].exp()
        expected = edges.envelope[e] * z[:, e].exp() / (1 + weights.sum(1))
        torch.testing.assert_close(found[:, e], expected)
    # logits that would overflow
    assert bool(torch.isfinite(smooth_softmax(1e4 * z, edges, len(numbers))).all())


def slow_attention(layer: Any, x: Tensor, edges: EdgeGeometry) -> Tensor:
    """Section 4.2 edge by edge, with e3nn's modules and an ordinary gate; one row at a time."""
    gate, weights = layer.gate, layer.radial(edges.basis)
    values, logits = [], []
    for e in range(len(edges.source)):
        end = layer.source(x[edges.source[e], None]) + layer.target(x[edges.target[e], None])
        couplings = edges.couplings[:, e, None]
        message = layer.message(layer.product(end, couplings, weights[:, e, None]))
        features = message[0, : gate.scalars].view(layer.heads, -1)
        leaky = 0.6 * features + 0.4 * features * (2 * features.sigmoid() - 1)
        logits.append((leaky * layer.logits[:, :, 0]).sum(1))
        hidden = gate(message[:, gate.scalars :])
        values.append(layer.value(layer.product(hidden, couplings)))
    attention = smooth_softmax(torch.stack(logits, 1), edges, len(x))
    received = torch.zeros_like(x)
    for e, value in enumerate(values):
        parts = [part.view(layer.heads, -1) for part in value[0].split(layer.slots)]
        weighted = torch.cat([(part * attention[:, e, None]).flatten() for part in parts])
        received[edges.target[e]] += weighted
    return layer.out(received)


def test_attention_edge_by_edge() -> None:
    numbers, where, batch = molecules()
    model = equiformer()
    edges = model.geometry(where, batch)
    x = torch.randn(len(numbers), model.hidden_irreps.dim)
    layer = model.blocks[0].attention
    torch.testing.assert_close(layer(x, edges), slow_attention(layer, x, edges))


def test_radial_parts() -> None:
    r = torch.linspace(0, 3, 301, requires_grad=True)
    f = envelope(r, 2.0)
    (slope,) = torch.autograd.grad(f.sum(), r, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), r)
    assert f[0] == 1
    assert bool((f[200:] == 0).all())
    assert bool((f.diff() <= 0).all())
    for derivative in (slope, curvature):
        assert bool((derivative[[0, *range(200, 301)]].abs() < 1e-12).all())
    basis = GaussianBasis(5, 2.0)
    assert torch.equal(basis(torch.tensor([0.5, 2.0])).argmax(0), torch.tensor([1, 4]))
    torch.testing.assert_close(basis(torch.tensor([0.0]))[1], torch.tensor([-0.5]).exp())
    weights = RadialWeights(5, 7, 3)
    x = basis(r.detach())
    hidden = x.t()
    for k, (w, b) in enumerate(zip(weights.weights, weights.biases, strict=True)):
        hidden = (nn.functional.silu(hidden) if k else hidden) @ w.t() + b[:, 0]
    torch.testing.assert_close(weights(x), hidden.t())


def test_papers_size_and_the_small_one() -> None:
    model = Equiformer()
    assert len(model.blocks) == 6
    assert model.hidden_irreps == o3.Irreps("128x0e+64x1o+32x2e")
    assert model.attribute_irreps == o3.Irreps("1x0e")
    assert model.geometry.harmonics == o3.Irreps("0e+1o+2e")
    assert model.blocks[0].attention.heads == 4
    assert model.geometry.cutoff == 5.0
    assert model.geometry.basis.count == 32
    assert Equiformer.small((1, 6)).elements.numbers == (1, 6)


def test_feed_forward_is_called_with_features_and_attributes() -> None:
    model = equiformer()
    seen: list[tuple[Any, ...]] = []
    for block in model.blocks:
        block.ffn.register_forward_hook(lambda module, args, out: seen.append((*args, out)))
    model(*molecules())
    n, dim = sum(SIZES), model.hidden_irreps.dim
    assert [tuple(t.shape for t in call) for call in seen] == [((n, dim), (n, 1), (n, dim))] * 2


def test_default_relaxation_finds_every_linear_map() -> None:
    model = equiformer()
    relaxation = er.relax(model)
    linear = [m for m in model.modules() if isinstance(m, o3.Linear)]
    # embedding, edge degree, read, head; source, target, message, value, out, and the feed-forward's two in every block
    assert len(linear) == 4 + 2 * 7
    assert len(relaxation) == sum(any(ir.l for _, ir in m.irreps_in + m.irreps_out) for m in linear)


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_projected_is_strict_again(mode: str) -> None:
    numbers, where, batch = molecules()
    model = equiformer()
    before = model(numbers, where, batch).detach()
    relaxation = er.relax(model)
    with torch.no_grad():
        for parameter in relaxation.residual_parameters().values():
            parameter.normal_(std=0.05)
    relaxation.set_gamma(0.5)
    turned = where @ (-o3.rand_matrix()).t()

    def error() -> float:
        here = model(numbers, where, batch)
        return float(((model(numbers, turned, batch) - here).norm() / here.norm()).detach())

    assert error() > 1e-4
    er.project(model, mode=mode)
    assert error() < 1e-9
    changed = float((model(numbers, where, batch) - before).abs().max().detach())
    assert changed == 0 if mode == "drop" else changed > 1e-3


def test_impossible_settings() -> None:
    for wrong in (
        {"blocks": 0},
        {"basis": 1},
        {"cutoff": 0.0},
        {"degree": -1.0},
        {"heads": 3},
        {"hidden": "4x1o+8x0e"},
        {"hidden": "8x0e+4x0o"},
        {"hidden": "8x0e+4x1o+4x1o"},
        {"elements": ()},
        {"elements": (1, 1)},
        {"elements": (0, 1)},
        {"elements": (1, 119)},
    ):
        with pytest.raises(RepresentationError, match="Equiformer"):
            equiformer(**wrong)
