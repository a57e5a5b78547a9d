"""SEGNN in the authors' code (RobDHess/Steerable-E3-GNN): its network file, on a minimal network of the same form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equirelax.testing import NetworkConformance

pytest.importorskip("e3nn")
import few_atoms
from scripted import scripted


class TestPublicSEGNN(NetworkConformance):
    name = "SEGNN, the authors' code"
    count = 2
    paths = ("layers.0.update_layer_1", "layers.0.update_layer_2")
    remarks = "the repository itself was tried at its commit 1b95898, for nodes and for graphs, with the same result"

    def network(self) -> nn.Module:
        from minimal.segnn import SEGNN

        return SEGNN()

    def inputs(self, dtype: torch.dtype) -> tuple[dict[str, Tensor]]:
        edges = few_atoms.edges()
        attributes = few_atoms.draw(4, 4, dtype=dtype, seed=2)
        attributes[:, 0] = 1.0
        graph = {
            "x": few_atoms.draw(4, 4, dtype=dtype),
            "edge_index": edges,
            "edge_attr": few_atoms.draw(edges.shape[1], 4, dtype=dtype, seed=3),
            "node_attr": attributes,
        }
        return (graph,)

    def representations(self) -> tuple[Any, Any]:
        return (dict.fromkeys(("x", "edge_attr", "node_attr"), "1x0e+1x1o"),), "1x1o"

    def script(self, network: nn.Module, sample: Any) -> nn.Module:
        return scripted(network)
