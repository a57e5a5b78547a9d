"""Vector neurons of the form of the authors' code, in all three shapes that their maps see."""

from __future__ import annotations

from typing import Any

import few_atoms
import pytest
import torch
from minimal.vector_neurons import PointNet, VNLinear
from torch import nn

import equirelax as er
from equirelax.errors import PlacementError, RepresentationError
from equirelax.symmetry import O, On, vector
from equirelax.testing import NetworkConformance


class TestVectorNeurons(NetworkConformance):
    name = "vector neurons (minimal PointNet)"
    paths = (
        "conv_pos.map_to_feat",
        "conv_pos.map_to_dir",
        "conv1.map_to_feat",
        "std_feature.vn1.map_to_feat",
        "std_feature.vn1.map_to_dir",
        "fc.map_to_feat",
        "fc.map_to_dir",
        "last.map_to_feat",
    )
    count = len(paths)

    def network(self) -> nn.Module:
        return PointNet(4)

    def inputs(self, dtype: torch.dtype) -> Any:
        return few_atoms.draw(2, 3, 5, dtype=dtype)

    def representations(self) -> tuple[Any, Any]:
        return On(vector(O(3)), 1), (None, vector(O(3)))


def test_the_directions_of_a_pool_are_not_relaxed() -> None:
    """They choose a point by the largest entry, so that no gradient reaches them, nor would it reach a residual."""
    network = PointNet(4)
    sum(y.sum() for y in network(few_atoms.draw(2, 3, 5, dtype=torch.float32))).backward()
    assert network.pool.map_to_dir.weight.grad is None
    with pytest.raises(PlacementError):
        er.relax(network.pool)


@pytest.mark.parametrize("shape", [(3, 4, 3), (3, 4, 3, 3), (3, 4, 3, 3, 3)])
def test_points_or_neighbours_as_many_as_coordinates_are_not_taken_for_them(shape: tuple[int, ...]) -> None:
    """A residual that is equivariant, put in by hand, leaves the map equivariant in every shape."""
    network = VNLinear(4, 2).double()
    relaxation = er.relax(network)
    (residual,) = relaxation.residuals.values()
    (weight,) = residual.map.parameters()
    drawn = few_atoms.draw(2, 4, dtype=torch.float64, seed=2)
    with torch.no_grad():
        weight.copy_(torch.kron(drawn, torch.eye(3, dtype=torch.float64)))
    relaxation.set_gamma(1.0)
    x = few_atoms.draw(*shape, dtype=torch.float64)
    expected = torch.einsum("oc,bc...->bo...", network.map_to_feat.weight + drawn, x)
    assert torch.allclose(network(x), expected, atol=1e-12)


def test_features_of_another_shape_are_refused() -> None:
    network = VNLinear(4, 2)
    er.relax(network)
    with pytest.raises(RepresentationError, match="map_to_feat"):
        network(few_atoms.draw(2, 4, 5, 3, dtype=torch.float32))


def test_maps_with_a_bias_are_not_relaxed() -> None:
    network = VNLinear(4, 2)
    network.map_to_feat = nn.Linear(4, 2)
    with pytest.raises(PlacementError):
        er.relax(network)
