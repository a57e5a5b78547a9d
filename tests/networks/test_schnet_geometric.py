"""PyTorch Geometric's SchNet."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from plain_graphs import interaction_graph, molecules
from torch import nn

import equirelax as er
from equirelax.relaxation.kinds import StreamStep
from equirelax.symmetry import E, positions, trivial
from equirelax.testing import NetworkConformance

geometric = pytest.importorskip("torch_geometric.nn.models", reason="torch_geometric is not installed")


class TestSchNet(NetworkConformance):
    name = "SchNet (PyTorch Geometric)"
    package = "torch_geometric"
    count = 2
    paths = ("interactions.0", "interactions.1")
    cannot: ClassVar[dict[str, str]] = {
        "script": "its message passing is scripted by PyTorch Geometric's own tools alone",
        "export": "the graph is built from the positions, and has another number of edges for others",
    }

    def network(self) -> nn.Module:
        made: nn.Module = geometric.SchNet(
            hidden_channels=8, num_filters=6, num_interactions=2, interaction_graph=interaction_graph
        )
        return made

    def inputs(self, dtype: torch.dtype) -> Any:
        return molecules(dtype)

    def representations(self) -> tuple[Any, Any]:
        return (None, positions(E(3)), None), trivial(E(3))


class Two(nn.Module):
    """Two networks in one model, each with its own stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = TestSchNet().network(), TestSchNet().network()

    def forward(self, z: torch.Tensor, pos: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return self.first(z, pos, batch) + self.second(z, 2.0 * pos, batch)  # type: ignore[no-any-return]


def test_networks_in_a_model_have_streams_of_their_own() -> None:
    model = Two().double()
    relaxation = er.relax(model)
    assert list(relaxation.residuals) == [
        f"{n}.interactions.{i}" for n in ("first", "second") for i in (0, 1)
    ]
    starts = [residual.map.start is not None for _, residual in relaxation]
    assert starts == [True, False, True, False]
    relaxation.set_gamma(1.0)
    assert model(*molecules(torch.float64)).isfinite().all()


def test_the_kind_of_its_steps_can_be_chosen_and_blocks_left_out() -> None:
    relaxation = er.relax(
        TestSchNet().network(), residual=StreamStep(spectral=True), exclude="interactions.0"
    )
    assert list(relaxation.residuals) == ["interactions.1"]
    assert relaxation["interactions.1"].map.start is not None
    with pytest.raises(er.EquirelaxError, match=r"interactions\.0: a residual stream is made of StreamStep"):
        er.relax(TestSchNet().network(), residual=er.Dense())


def test_a_schnet_that_is_called_otherwise_is_left_alone() -> None:
    class SchNet(geometric.SchNet):  # type: ignore[name-defined, misc]
        def forward(self, data: Any) -> torch.Tensor:
            return super().forward(data.z, data.pos)  # type: ignore[no-any-return]

    with pytest.raises(er.EquirelaxError, match="nothing to relax"):
        er.relax(SchNet(hidden_channels=8, num_filters=6, num_interactions=2))
