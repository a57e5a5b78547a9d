"""A minimal network of the form of TorchMD-ET; the real one is tested in `tests/with_schnetpack`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from minimal.torchmd_et import EquivariantScalar, EquivariantVectorOutput, TorchMD_ET, TorchMD_Net
from torch import nn

import equirelax as er
from equirelax.errors import PlacementError
from equirelax.symmetry import E, positions, vector
from equirelax.testing import NetworkConformance

READOUT = tuple(f"output_model.output_network.{i}.vec{j}_proj" for i in (0, 1) for j in (1, 2))


class TestTorchMDET(NetworkConformance):
    name = "TorchMD-ET (minimal)"
    paths = ("representation_model.attention_layers.1.vec_proj", *READOUT)
    count = len(paths)

    def network(self) -> nn.Module:
        return TorchMD_Net(TorchMD_ET(4, 2), EquivariantVectorOutput(4))

    def inputs(self, dtype: torch.dtype) -> Any:
        place = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        return torch.tensor([6, 1, 1, 8]), place.to(dtype)

    def representations(self) -> tuple[Any, Any]:
        return (None, positions(E(3))), vector(E(3))


def test_vectors_that_a_scalar_readout_throws_away_are_not_relaxed() -> None:
    relaxation = er.relax(TorchMD_Net(TorchMD_ET(4, 1), EquivariantScalar(4)))
    assert tuple(relaxation.residuals) == READOUT[:-1]


def test_an_attention_layer_of_another_form_is_not_taken_for_one() -> None:
    network = TorchMD_ET(4, 2)
    network.attention_layers[1].vec_proj = nn.Linear(4, 8, bias=False)
    with pytest.raises(PlacementError):
        er.relax(network)
