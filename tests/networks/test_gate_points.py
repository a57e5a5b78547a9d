"""e3nn's own network of January 2021, `e3nn.nn.models.gate_points_2101.Network`."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from equirelax.symmetry import E, positions
from equirelax.testing import NetworkConformance

pytest.importorskip("e3nn")
import few_atoms


class TestGatePoints(NetworkConformance):
    name = "gate_points_2101"
    package = "e3nn"
    count = 8
    paths = tuple(
        f"layers.{layer}.{name}" for layer in ("0.first", "1") for name in ("sc", "lin1", "tp", "lin2")
    )
    cannot: ClassVar = {
        "export": "it makes its edges itself, on whose number torch.export cannot branch",
        "script": "its layers take *arguments, which TorchScript cannot",
    }

    def network(self) -> nn.Module:
        from e3nn.nn.models.gate_points_2101 import Network

        return Network(
            "1x0e+1x1o", "2x0e+2x1o", "1x0e+1x1o", "1x0e", "1x0e+1x1o", layers=1, max_radius=3.0, number_of_basis=4,
            radial_layers=1, radial_neurons=8, num_neighbors=3.0, num_nodes=4.0,
        )  # fmt: skip

    def inputs(self, dtype: torch.dtype) -> tuple[dict[str, Tensor]]:
        features, attributes = few_atoms.draw(4, 4, dtype=dtype), few_atoms.draw(4, 1, dtype=dtype, seed=2)
        return ({"pos": few_atoms.positions(dtype), "x": features, "z": attributes},)

    def representations(self) -> tuple[Any, Any]:
        return ({"pos": positions(E(3)), "x": "1x0e+1x1o"},), "1x0e+1x1o"
