"""NequIP (Batzner et al., arXiv 2101.03164) from its package: e3nn's layers, found by their families."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from equirelax.symmetry import E, positions, vector
from equirelax.testing import NetworkConformance

pytest.importorskip("nequip", reason="needs NequIP: pip install '.[examples]'")
import few_atoms
from scripted import scripted
from undisturbed import undisturbed


class EnergyAndForces(nn.Sequential):
    """Of all that a network of NequIP's kind returns, what transforms."""

    def forward(self, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        out = self[0](data)
        return out["total_energy"], out["forces"]


def graph(dtype: torch.dtype) -> dict[str, Tensor]:
    """The molecule as NequIP and Allegro read it."""
    return {
        "pos": few_atoms.positions(dtype),
        "atom_types": few_atoms.types(),
        "edge_index": few_atoms.edges(),
    }


class TestNequIP(NetworkConformance):
    name = "NequIP"
    package = "nequip"
    count = 5
    cannot: ClassVar = {
        "export": "forces are a gradient that it takes itself, which torch.export cannot follow; nequip-compile can",
    }
    paths = tuple(
        f"0.model.func.{path}"
        for path in (
            "layer0_convnet.conv.tp_scatter.tp",
            "layer0_convnet.conv.linear_2",
            "layer1_convnet.conv.linear_1",
            "layer1_convnet.conv.tp_scatter.tp",
            "layer1_convnet.conv.sc",
        )
    )

    def network(self) -> nn.Module:
        from nequip.model import NequIPGNNModel
        from nequip.utils.global_state import set_global_state

        dtype = str(torch.get_default_dtype()).removeprefix("torch.")
        with undisturbed():
            set_global_state()
            network = NequIPGNNModel(
                seed=0, model_dtype=dtype, r_max=4.0, type_names=["H", "C", "O"], num_layers=2, l_max=1, num_features=4,
                radial_mlp_width=8, avg_num_neighbors=3.0, per_type_energy_scales=1.0, per_type_energy_shifts=0.0,
            )  # fmt: skip
        return EnergyAndForces(network)

    def inputs(self, dtype: torch.dtype) -> tuple[dict[str, Tensor]]:
        return (graph(dtype),)

    def representations(self) -> tuple[Any, Any]:
        return ({"pos": positions(E(3))},), (None, vector(E(3)))

    def script(self, network: nn.Module, sample: Any) -> EnergyAndForces:
        return EnergyAndForces(scripted(network[0]))
