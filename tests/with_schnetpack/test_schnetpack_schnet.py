"""schnetpack's SchNet: the representation, and a whole potential whose forces go through the residual stream."""

from __future__ import annotations

from typing import Any

import torch
from schnetpack import properties
from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
from schnetpack.model import NeuralNetworkPotential
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.representation import SchNet
from torch import nn

import equirelax as er
from equirelax.symmetry import E, positions, vector
from equirelax.testing import NetworkConformance

POINTS, VECTORS = positions(E(3)), vector(E(3))
PAIRS = [(i, j) for i in range(3) for j in range(3) if i != j] + [(3, 4), (4, 3)]


def representation(interactions: int = 2, shared: bool = False) -> SchNet:
    """In the default dtype, although GaussianRBF can be built in float32 only."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        radial, cutoff = GaussianRBF(4, cutoff=9.0), CosineCutoff(9.0)
        return SchNet(6, interactions, radial, cutoff, shared_interactions=shared).to(dtype)
    finally:
        torch.set_default_dtype(dtype)


def molecules(dtype: torch.dtype) -> dict[str, Any]:
    """Three atoms and two, away from the origin."""
    generator = torch.Generator().manual_seed(4)
    where = (torch.randn(5, 3, dtype=torch.float64, generator=generator) + 2.0).to(dtype)
    i, j = torch.tensor(PAIRS).T
    return {
        properties.Z: torch.tensor([6, 1, 1, 8, 1]),
        properties.R: where,
        properties.Rij: where[j] - where[i],
        properties.idx_i: i,
        properties.idx_j: j,
        properties.idx_m: torch.tensor([0, 0, 0, 1, 1]),
        properties.n_atoms: torch.tensor([3, 2]),
        properties.offsets: torch.zeros(len(i), 3, dtype=dtype),
    }


class TestSchNet(NetworkConformance):
    name = "SchNet (schnetpack)"
    package = "schnetpack"
    count = 2
    paths = ("interactions.0", "interactions.1")

    def network(self) -> nn.Module:
        return representation()

    def inputs(self, dtype: torch.dtype) -> Any:
        return molecules(dtype)

    def representations(self) -> tuple[Any, Any]:
        given = {properties.R: POINTS, properties.Rij: VECTORS}
        return given, given


def test_forces_of_a_potential_are_the_gradient_of_the_relaxed_energy() -> None:
    torch.manual_seed(0)
    potential = NeuralNetworkPotential(
        representation=representation(),
        input_modules=[PairwiseDistances()],
        output_modules=[
            Atomwise(n_in=6, output_key="energy"),
            Forces(energy_key="energy", force_key="forces"),
        ],
    ).double()
    relaxation = er.relax(potential)
    assert list(relaxation.residuals) == ["representation.interactions.0", "representation.interactions.1"]
    strict = potential(molecules(torch.float64))["forces"].detach()
    relaxation.set_gamma(0.7)
    potential.eval()
    forces = potential(molecules(torch.float64))["forces"].detach()
    assert float((forces - strict).abs().max()) > 1e-3

    def energy(shift: float) -> float:
        given = molecules(torch.float64)
        given[properties.R][1, 2] += shift
        return float(potential(given)["energy"].detach().sum())

    slope = (energy(1e-5) - energy(-1e-5)) / 2e-5
    torch.testing.assert_close(-forces[1, 2].item(), slope, rtol=1e-6, atol=1e-8)


def test_shared_interactions_have_one_residual() -> None:
    """One block that is called in every layer is relaxed once."""
    assert list(er.relax(representation(3, shared=True)).residuals) == ["interactions.0"]
