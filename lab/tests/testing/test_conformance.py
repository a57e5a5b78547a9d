"""The methods and models of the package, held to the conformance classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equirelax_lab.models import EGNN
from torch import Tensor, nn

from equirelax.auditing import symmetry_score
from equirelax.methods import (
    ACE,
    REMUL,
    RPP,
    Method,
    ResilientACE,
    Scheduled,
    Strict,
    Swing,
    SymmetryFollowing,
)
from equirelax.relaxation import Relaxation
from equirelax.relaxation.regularizers import LieDerivative
from equirelax.symmetry import E, O, positions, vector
from equirelax.testing import MethodConformance, ModelConformance

torch.set_num_threads(1)


class TestStrict(MethodConformance):
    needs_penalty = False

    def build_method(self, relaxation: Relaxation) -> Method:
        return Strict(relaxation)


class TestScheduled(MethodConformance):
    def build_method(self, relaxation: Relaxation) -> Method:
        return Scheduled(relaxation, total_steps=20)


class TestACE(MethodConformance):
    def build_method(self, relaxation: Relaxation) -> Method:
        return ACE(relaxation, dual_lr=1e-2)


class TestACEWithAdamAndPenalty(MethodConformance):
    def build_method(self, relaxation: Relaxation) -> Method:
        penalty = LieDerivative(relaxation, rows=5, generator=torch.Generator().manual_seed(3))
        return ACE(
            relaxation, dual_lr=1e-2, dual_optimizer="adam", augmented=0.5, pi=0.1, regularizer=penalty
        )


class TestResilientACE(MethodConformance):
    def build_method(self, relaxation: Relaxation) -> Method:
        return ResilientACE(relaxation, dual_lr=1e-2, primal_lr=1e-2)


class TestREMUL(MethodConformance):
    def build_method(self, relaxation: Relaxation) -> Method:
        return REMUL(relaxation, alpha=0.7, beta=0.3)


class TestREMULWithGradNorm(MethodConformance):
    def build_method(self, relaxation: Relaxation) -> Method:
        return REMUL(relaxation, weighting="gradnorm", asymmetry=0.5, weights_lr=0.1)


class TestREMULWithGradNormBySGD(MethodConformance):
    def build_method(self, relaxation: Relaxation) -> Method:
        shared = relaxation.strict_parameters().values()
        return REMUL(relaxation, weighting="gradnorm", weights_optimizer="sgd", shared=shared)


class TestRPP(MethodConformance):
    def build_method(self, relaxation: Relaxation) -> Method:
        return RPP(relaxation, eq_weight=1e-3, residual_weight=1e-2)


class TestSwing(MethodConformance):
    def build_method(self, relaxation: Relaxation) -> Method:
        return Swing(relaxation, period=7, finish=6, regularizer=LieDerivative(relaxation))


class TestSymmetryFollowing(MethodConformance):
    def build_method(self, relaxation: Relaxation) -> Method:
        batch = self.batch(99)
        return SymmetryFollowing(
            relaxation,
            lambda found: symmetry_score(
                found.model, batch, lambda model, b: (model(b[0]) - b[1]).square().flatten(1).sum(1)
            ),
            measure_every=3,
        )


def seeded(build: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        try:
            return build()
        finally:
            torch.set_default_dtype(torch.float32)


class Graphs(ModelConformance):
    """Two fully connected graphs of four nodes."""

    def graph(self, *widths: int) -> tuple[list[Tensor], Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2)
        graph = torch.arange(2).repeat_interleave(4)
        source, target = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        kept = (source != target) & (graph[source] == graph[target])
        features = [torch.randn(8, width, generator=generator, dtype=torch.float64) for width in widths]
        return features, torch.stack((source[kept], target[kept])), graph

    @staticmethod
    def shuffle(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A new order of the eight nodes, and where each has gone."""
        order = torch.randperm(8, generator=generator)
        return order, torch.argsort(order)


class TestEGNN(Graphs):
    # As in the published network, the last layer's node features are not read by anything.
    unused = ("layers.1.update.*",)

    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        (x, v, h, e), edges, _ = self.graph(3, 3, 1, 1)
        edge_features = e[edges[0]] * e[edges[1]]
        model = seeded(lambda: EGNN(hidden=8, layers=2, in_features=1, edge_features=1))
        group = E(3)
        in_rep = (positions(group), vector(group), None, None, None)
        return model, (x, v, h, edges, edge_features), in_rep, positions(group)

    def permute(self, sample: Any, generator: torch.Generator) -> Any:
        order, place = self.shuffle(generator)
        x, v, h, edges, edge_features = sample
        return (x[order], v[order], h[order], place[edges], edge_features), lambda y: y[place]


class TestSEGNN(Graphs):
    def build(self) -> tuple[nn.Module, Any, Any, Any]:
        pytest.importorskip("e3nn")
        from equirelax_lab.models import SEGNN

        (x, v, q), edges, graph = self.graph(3, 3, 1)
        model = seeded(lambda: SEGNN(hidden=16, layers=2))
        return model, (x, v, q, edges, graph), (vector(O(3)), vector(O(3)), None, None, None), vector(O(3))

    def permute(self, sample: Any, generator: torch.Generator) -> Any:
        order, place = self.shuffle(generator)
        x, v, q, edges, graph = sample
        return (x[order], v[order], q[order], place[edges], graph[order]), lambda y: y[place]
