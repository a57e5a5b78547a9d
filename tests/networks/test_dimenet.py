"""PyTorch Geometric's DimeNet++, with graph builders on plain tensors."""

from __future__ import annotations

from typing import Any, ClassVar

import plain_graphs
import pytest
import torch
from torch import nn

from equirelax.symmetry import E, positions, trivial
from equirelax.testing import NetworkConformance

dimenet = pytest.importorskip("torch_geometric.nn.models.dimenet", reason="torch_geometric is not installed")
pytest.importorskip("sympy", reason="DimeNet's bases need sympy")


class TestDimeNetPlusPlus(NetworkConformance):
    name = "DimeNet++ (PyTorch Geometric)"
    package = "torch_geometric"
    count = 2
    paths = ("output_blocks.0.lin_up", "output_blocks.1.lin_up")
    cannot: ClassVar[dict[str, str]] = {
        "script": "it keeps Python functions as its bases",
        "export": "the graph is built from the positions, and has another number of edges for others",
        "pickle": "its bases are functions that sympy makes",
    }

    @pytest.fixture(autouse=True)
    def _builders(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("radius_graph", "triplets"):
            monkeypatch.setattr(dimenet, name, getattr(plain_graphs, name))

    def network(self) -> nn.Module:
        made: nn.Module = dimenet.DimeNetPlusPlus(
            hidden_channels=8,
            out_channels=2,
            num_blocks=1,
            int_emb_size=4,
            basis_emb_size=4,
            out_emb_channels=6,
            num_spherical=2,
            num_radial=2,
            output_initializer="glorot_orthogonal",
        )
        return made

    def inputs(self, dtype: torch.dtype) -> Any:
        return plain_graphs.molecules(dtype)

    def representations(self) -> tuple[Any, Any]:
        return (None, positions(E(3)), None), trivial(E(3), 2)
