"""e3nn's own `SimpleNetwork` (`e3nn.nn.models.v2106`)."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from equirelax.symmetry import E, positions
from equirelax.testing import NetworkConformance

pytest.importorskip("e3nn")
import few_atoms


class TestSimpleNetwork(NetworkConformance):
    name = "SimpleNetwork"
    package = "e3nn"
    count = 10
    paths = tuple(
        f"mp.layers.{layer}.{name}"
        for layer in ("0.first", "1")
        for name in ("sc", "lin1", "tp", "lin2", "alpha")
    )
    cannot: ClassVar = {
        "export": "it makes its edges itself, on whose number torch.export cannot branch",
        "script": "its layers take *arguments, which TorchScript cannot",
    }

    def network(self) -> nn.Module:
        from e3nn.nn.models.v2106.gate_points_networks import SimpleNetwork

        sizes: dict[str, Any] = {"max_radius": 3.0, "num_neighbors": 3.0, "num_nodes": 4.0}
        return SimpleNetwork("1x0e+1x1o", "1x0e+1x1o", **sizes, mul=2, layers=1, lmax=1)

    def inputs(self, dtype: torch.dtype) -> tuple[dict[str, Tensor]]:
        return ({"pos": few_atoms.positions(dtype), "x": few_atoms.draw(4, 4, dtype=dtype)},)

    def representations(self) -> tuple[Any, Any]:
        return ({"pos": positions(E(3)), "x": "1x0e+1x1o"},), "1x0e+1x1o"
