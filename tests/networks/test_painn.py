"""PaiNN in the form of fairchem; schnetpack's is tested in `tests/with_schnetpack`."""

from __future__ import annotations

from typing import Any

import few_atoms
import pytest
import torch
from minimal.painn import PaiNN, PainnUpdate
from torch import nn

import equirelax as er
from equirelax.errors import PlacementError
from equirelax.symmetry import E, O, On, positions, vector
from equirelax.testing import NetworkConformance


class TestPaiNN(NetworkConformance):
    name = "PaiNN (form of fairchem)"
    paths = (
        "update_layers.0.vec_proj",
        "update_layers.1.vec_proj",
        "out_forces.output_network.0.vec1_proj",
        "out_forces.output_network.0.vec2_proj",
        "out_forces.output_network.1.vec1_proj",
        "out_forces.output_network.1.vec2_proj",
    )
    count = len(paths)

    def network(self) -> nn.Module:
        return PaiNN(4, 2)

    def inputs(self, dtype: torch.dtype) -> Any:
        place = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        return torch.tensor([6, 1, 1, 8]), place.to(dtype)

    def representations(self) -> tuple[Any, Any]:
        return (None, positions(E(3))), (None, vector(E(3)))


@pytest.mark.parametrize("linear", [nn.Linear(4, 8), nn.Linear(4, 4, bias=False), nn.Identity()])
def test_an_update_block_of_another_form_is_not_taken_for_one(linear: nn.Module) -> None:
    network = PaiNN(4, 1).update_layers[0]
    network.vec_proj = linear
    with pytest.raises(PlacementError):
        er.relax(network)


def test_the_two_images_of_the_vectors_may_have_a_map_each() -> None:
    network = PainnUpdate(4).double()
    relaxation = er.relax(network, generator=torch.Generator().manual_seed(0))
    assert list(relaxation.residuals) == ["update_U", "update_V"]
    vectors = On(vector(O(3)), -2)
    sample = few_atoms.draw(5, 4, dtype=torch.float64), few_atoms.draw(5, 3, 4, dtype=torch.float64, seed=2)
    report = er.audit(network, sample, (None, vectors), (None, vectors))
    assert report.equivariant


def test_maps_with_a_bias_are_not_relaxed() -> None:
    with pytest.raises(PlacementError):
        er.relax(PainnUpdate(4, bias=True))
