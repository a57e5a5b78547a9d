"""EGNN in the form of its authors' code, with velocities and without."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from minimal.egnn import E_GCL, EGNN
from torch import nn

import equirelax as er
from equirelax.symmetry import E, positions, vector
from equirelax.testing import NetworkConformance

GRAPH = torch.tensor([0, 0, 0, 1, 1])
EDGES = [torch.tensor(side) for side in ([0, 0, 1, 1, 2, 2, 3, 4], [1, 2, 0, 2, 0, 1, 4, 3])]


class TestEGNN(NetworkConformance):
    name = "EGNN (minimal)"
    count = 4
    paths = ("gcl_0:h", "gcl_0:x", "gcl_1:h", "gcl_1:x")
    velocities: ClassVar[bool] = False
    cannot: ClassVar[dict[str, str]] = {
        "script": "its edges are a list that TorchScript takes for one tensor"
    }

    def network(self) -> nn.Module:
        return EGNN(2, 4, self.velocities)

    def inputs(self, dtype: torch.dtype) -> Any:
        generator = torch.Generator().manual_seed(2)
        drawn = torch.randn(5, 8, generator=generator, dtype=torch.float64).to(dtype)
        given = {"h": drawn[:, :2], "x": drawn[:, 2:5] + 2.0, "edges": EDGES}
        return {**given, "vel": drawn[:, 5:]} if self.velocities else given

    def representations(self) -> tuple[Any, Any]:
        points = positions(E(3))
        given = {"x": points, "vel": vector(E(3))} if self.velocities else {"x": points}
        return given, (None, points)


class TestEGNNWithVelocities(TestEGNN):
    name = "EGNN (minimal, with velocities)"
    velocities: ClassVar[bool] = True


def test_velocities_are_read_where_there_are_any() -> None:
    sizes = [
        {residual.in_rep.dim for _, residual in er.relax(EGNN(2, 4, velocities))}
        for velocities in (False, True)
    ]
    assert sizes == [{4 + 3}, {4 + 3 + 3}]


def test_graphs_of_a_batch_do_not_move_one_another() -> None:
    torch.manual_seed(0)
    network = EGNN(2, 4, False).double()
    relaxation = er.relax(network)
    for parameter in relaxation.residual_parameters().values():
        nn.init.normal_(parameter)
    relaxation.set_gamma(1.0)
    h, x = torch.randn(5, 2).double(), torch.randn(5, 3).double()
    moved = x + 3.0 * (GRAPH == 1)[:, None]
    (before, there), (after, here) = network(h, x, EDGES), network(h, moved, EDGES)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(here - moved, there - x, rtol=1e-10, atol=1e-10)


def test_layers_of_another_structure_are_left_alone() -> None:
    """Those whose number of inputs is not known, and those with masks, whose edges reach nodes that are not there."""

    class E_GCL_mask(E_GCL):
        def forward(self, h: Any, edge_index: Any, coord: Any, node_mask: Any, edge_mask: Any) -> Any:
            return super().forward(h, edge_index, coord)

    for layer in (E_GCL(4, residual=False), E_GCL_mask(4)):
        with pytest.raises(er.EquirelaxError, match="nothing to relax"):
            er.relax(layer)
