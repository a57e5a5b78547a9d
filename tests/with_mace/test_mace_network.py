"""MACE (Batatia et al., arXiv 2206.07697) from its package: e3nn's layers, found by their families, in e3nn 0.4.4."""

# ruff: noqa: E402
from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

torch.serialization.add_safe_globals([slice])  # e3nn 0.4.4 reads its constants with torch.load

import few_atoms
import pytest
from e3nn import o3
from mace import modules
from scripted import scripted

from equirelax.symmetry import E, positions, vector
from equirelax.testing import NetworkConformance

pytestmark = pytest.mark.filterwarnings("ignore")
BLOCKS = modules.interaction_classes


class EnergyAndForces(nn.Sequential):
    """Of all that MACE returns, what transforms."""

    def forward(self, graph: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        out = self[0](graph, training=self.training)
        return out["energy"], out["forces"]


class TestMACE(NetworkConformance):
    name = "MACE"
    package = "mace-torch"
    count = 9
    paths = (
        "0.interactions.0.conv_tp",
        "0.interactions.0.linear",
        "0.interactions.0.skip_tp",
        "0.interactions.1.linear_up",
        "0.interactions.1.conv_tp",
        "0.interactions.1.linear",
        "0.interactions.1.skip_tp",
        "0.products.0.linear",
        "0.readouts.0.linear",
    )
    cannot: ClassVar = {
        "export": "forces are a gradient that it takes itself, which torch.export cannot follow",
    }
    no_matrices = ("*.contractions.*.weights_max", "*.contractions.*.weights.*")
    remarks = "with e3nn 0.4.4; each of its interaction blocks"
    cls: ClassVar[str] = "MACE"
    further: ClassVar[dict[str, Any]] = {}

    def network(self) -> nn.Module:
        settings: dict[str, Any] = {
            "r_max": 4.0, "num_bessel": 4, "num_polynomial_cutoff": 5, "max_ell": 1, "num_interactions": 2, "num_elements": 3,
            "interaction_cls": BLOCKS["RealAgnosticResidualInteractionBlock"], "gate": nn.functional.silu, "correlation": 2,
            "interaction_cls_first": BLOCKS["RealAgnosticInteractionBlock"], "hidden_irreps": o3.Irreps("4x0e + 4x1o"),
            "MLP_irreps": o3.Irreps("4x0e"), "atomic_energies": np.zeros(3), "avg_num_neighbors": 3, "radial_MLP": [8],
            "atomic_numbers": [1, 6, 8],
        }  # fmt: skip
        network = getattr(modules, self.cls)(**settings | self.further)
        return EnergyAndForces(network)

    def inputs(self, dtype: torch.dtype) -> tuple[dict[str, Tensor]]:
        edges = few_atoms.edges()
        graph = {
            "positions": few_atoms.positions(dtype),
            "node_attrs": nn.functional.one_hot(few_atoms.types(), 3).to(dtype),
            "edge_index": edges,
            "shifts": torch.zeros(edges.shape[1], 3, dtype=dtype),
            "unit_shifts": torch.zeros(edges.shape[1], 3, dtype=dtype),
            "cell": torch.zeros(3, 3, dtype=dtype),
            "batch": torch.zeros(4, dtype=torch.long),
            "ptr": torch.tensor([0, 4]),
            "head": torch.zeros(1, dtype=torch.long),
        }
        return (graph,)

    def representations(self) -> tuple[Any, Any]:
        return ({"positions": positions(E(3))},), (None, vector(E(3)))

    def script(self, network: nn.Module, sample: Any) -> nn.Module:
        return EnergyAndForces(scripted(network[0])).eval()


class TestScaleShiftMACE(TestMACE):
    name = "ScaleShiftMACE"
    remarks = "with e3nn 0.4.4"
    cls = "ScaleShiftMACE"
    further: ClassVar = {"atomic_inter_scale": 1.3, "atomic_inter_shift": 0.1}


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_interaction_block_is_relaxed_and_projected_back(block: str) -> None:
    class Other(TestMACE):
        name = f"MACE with {block}"
        further: ClassVar = {"interaction_cls": BLOCKS[block]}

    Other().test_it_is_relaxed_at_strength_one_and_not_at_zero()
    Other().test_projected_it_is_the_authors_network()
