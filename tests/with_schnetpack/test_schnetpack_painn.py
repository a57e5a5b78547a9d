"""schnetpack's PaiNN: the representation of scalars and vectors, and with a readout of dipole moments."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from schnetpack import properties
from schnetpack.atomistic import DipoleMoment
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.representation import PaiNN
from torch import Tensor, nn

import equirelax as er
from equirelax.symmetry import O, On, vector
from equirelax.testing import NetworkConformance

ATOMS = 4
VECTOR = vector(O(3))


class Dipoles(nn.Module):
    """The representation and a readout of two gated equivariant blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.representation = representation()
        self.readout = DipoleMoment(n_in=6, n_layers=2, use_vector_representation=True)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.readout(self.representation(inputs))["dipole_moment"]


def representation() -> PaiNN:
    """In the default dtype, although GaussianRBF can be built in float32 only."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return PaiNN(6, 2, GaussianRBF(4, cutoff=5.0), CosineCutoff(5.0)).to(dtype)
    finally:
        torch.set_default_dtype(dtype)


class Molecule(NetworkConformance):
    """A molecule of four atoms."""

    package = "schnetpack"
    given: ClassVar[dict[str, Any]] = {properties.R: VECTOR, properties.Rij: VECTOR}

    def inputs(self, dtype: torch.dtype) -> Any:
        generator = torch.Generator().manual_seed(4)
        positions = torch.randn(ATOMS, 3, dtype=torch.float64, generator=generator).to(dtype)
        i, j = (~torch.eye(ATOMS, dtype=torch.bool)).nonzero(as_tuple=True)
        return {
            properties.Z: torch.tensor([6, 1, 1, 8]),
            properties.R: positions,
            properties.Rij: positions[j] - positions[i],
            properties.idx_i: i,
            properties.idx_j: j,
            properties.idx_m: torch.zeros(ATOMS, dtype=torch.long),
            properties.n_atoms: torch.tensor([ATOMS]),
        }


class TestPaiNN(Molecule):
    name = "PaiNN"
    paths = ("mixing.0.mu_channel_mix", "mixing.1.mu_channel_mix")
    count = len(paths)

    def network(self) -> nn.Module:
        return representation()

    def representations(self) -> tuple[Any, Any]:
        return self.given, {**self.given, "vector_representation": On(VECTOR, -2)}


class TestPaiNNWithDipoles(Molecule):
    name = "PaiNN with dipole moments"
    paths = (
        "representation.mixing.0.mu_channel_mix",
        "representation.mixing.1.mu_channel_mix",
        "readout.outnet.0.mix_vectors",
        "readout.outnet.1.mix_vectors",
    )
    count = len(paths)
    cannot: ClassVar[dict[str, str]] = {
        "export": "the readout takes the number of molecules from the entries of a tensor",
        "script": "the readout's blocks hold activations that are plain functions",
    }

    def network(self) -> nn.Module:
        return Dipoles()

    def representations(self) -> tuple[Any, Any]:
        return self.given, VECTOR


def test_shared_interactions_have_one_residual() -> None:
    """One block that is called in every layer is relaxed once."""
    network = PaiNN(6, 3, GaussianRBF(4, cutoff=5.0), CosineCutoff(5.0), shared_interactions=True)
    assert list(er.relax(network).residuals) == ["mixing.0.mu_channel_mix"]
