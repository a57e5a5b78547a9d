"""SE(3)-Transformer: its formula and symmetry; and the plain network of atoms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from e3nn import o3
from equirelax_lab.models import AtomTransformer, SE3Transformer
from equirelax_lab.models.molecular import smooth_softmax
from molecule_inputs import SIZES, molecules, se3_transformer
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import RepresentationError
from equirelax.symmetry import E, positions, trivial
from equirelax.testing import ModelConformance


class TestSE3Transformer(ModelConformance):
    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        group = E(3)
        return se3_transformer(), molecules(), (None, positions(group), None), trivial(group, len(SIZES))

    def permute(self, sample: Any, generator: torch.Generator) -> tuple[Any, Callable[[Tensor], Tensor]]:
        order = torch.randperm(len(sample[0]), generator=generator)
        return tuple(entry[order] for entry in sample), lambda output: output


def test_attention_edge_by_edge() -> None:
    """Equations 10 to 12, one edge and one head after another."""
    numbers, where, batch = molecules()
    model = se3_transformer()
    edges = model.geometry(where, batch)
    x = torch.randn(len(numbers), model.hidden_irreps.dim)
    layer = model.layers[0].attention
    weights = layer.radial(edges.basis)

    def heads(features: Tensor) -> list[Tensor]:
        parts = [part.view(layer.heads, -1) for part in features.split(layer.slots)]
        return [torch.cat([part[h] for part in parts]) for h in range(layer.heads)]

    logits, values = torch.zeros(layer.heads, len(edges.source)), []
    for e in range(len(edges.source)):
        j, i = edges.source[e], edges.target[e]
        coupled = layer.product(x[j, None], edges.couplings[:, e, None], weights[:, e, None])
        for h, (q, k) in enumerate(
            zip(heads(layer.queries(x[i, None])[0]), heads(layer.keys(coupled)[0]), strict=True)
        ):
            logits[h, e] = q @ k / len(q) ** 0.5
        values.append(layer.values(coupled)[0])
    attention = smooth_softmax(logits, edges, len(x))
    received = torch.zeros_like(x)
    for e, value in enumerate(values):
        parts = [part.view(layer.heads, -1) for part in value.split(layer.slots)]
        weighted = torch.cat([(part * attention[:, e, None]).flatten() for part in parts])
        received[edges.target[e]] += weighted
    expected = layer.self_interaction(x) + layer.out(received)
    torch.testing.assert_close(layer(x, edges), expected)


def test_default_relaxation_finds_every_linear_map_and_projects_back() -> None:
    numbers, where, batch = molecules()
    model = se3_transformer()
    relaxation = er.relax(model)
    linear = [m for m in model.modules() if isinstance(m, o3.Linear)]
    # embedding, read, head; queries, keys, values, self-interaction and out in both layers
    assert len(linear) == 3 + 2 * 5
    assert len(relaxation) == sum(any(ir.l for _, ir in m.irreps_in + m.irreps_out) for m in linear)
    with torch.no_grad():
        for parameter in relaxation.residual_parameters().values():
            parameter.normal_(std=0.05)
    relaxation.set_gamma(0.5)
    turned = where @ (-o3.rand_matrix()).t()
    here = model(numbers, where, batch)
    assert float(((model(numbers, turned, batch) - here).norm() / here.norm()).detach()) > 1e-4
    er.project(model)
    here = model(numbers, where, batch)
    assert float(((model(numbers, turned, batch) - here).norm() / here.norm()).detach()) < 1e-9


def test_impossible_settings() -> None:
    assert SE3Transformer.small((1, 6)).elements.numbers == (1, 6)
    for wrong in (
        {"layers": 0},
        {"basis": 1},
        {"cutoff": 0.0},
        {"heads": 3},
        {"hidden": "4x1o"},
        {"elements": ()},
    ):
        with pytest.raises(RepresentationError, match="SE3Transformer"):
            se3_transformer(**wrong)


def plain() -> AtomTransformer:
    return AtomTransformer(hidden=8, layers=2, heads=2)


def test_plain_keeps_translations_and_permutations_not_rotations() -> None:
    numbers, where, batch = molecules()
    model = plain()
    here = model(numbers, where, batch)
    assert here.shape == (len(SIZES),)
    torch.testing.assert_close(model(numbers, where + torch.tensor([1.0, -2.0, 3.0]), batch), here)
    order = torch.randperm(len(numbers))
    torch.testing.assert_close(model(numbers[order], where[order], batch[order]), here)
    turned = model(numbers, where @ o3.rand_matrix().t(), batch)
    assert float((turned - here).abs().max().detach()) > 1e-3


def test_plain_molecules_are_computed_alone() -> None:
    numbers, where, batch = molecules(sizes=(4, 1, 6, 4))
    model = plain()
    alone = [
        model(numbers[batch == k], where[batch == k], torch.zeros(int((batch == k).sum()), dtype=torch.long))
        for k in range(4)
    ]
    torch.testing.assert_close(torch.cat(alone), model(numbers, where, batch))
    none = torch.zeros(0, dtype=torch.long)
    assert model(none, torch.zeros(0, 3), none).shape == (0,)
    numbers[2] = 17
    with pytest.raises(RepresentationError, match=r"AtomTransformer: the elements \[17\]"):
        model(numbers, where, batch)
    for wrong in ({"hidden": 9, "heads": 2}, {"layers": 0}, {"elements": ()}):
        with pytest.raises(RepresentationError, match="AtomTransformer"):
            AtomTransformer(**wrong)


def test_plain_small_has_about_the_parameters_of_equiformer_small() -> None:
    from equirelax_lab.models import Equiformer

    counts = [sum(p.numel() for p in m.parameters()) for m in (AtomTransformer.small(), Equiformer.small())]
    assert abs(counts[0] / counts[1] - 1) < 0.2
