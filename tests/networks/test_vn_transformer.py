"""VN-Transformer, of vectors alone and with invariant features on the axis of the coordinates."""

from __future__ import annotations

from typing import Any, ClassVar

import few_atoms
import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import PlacementError
from equirelax.symmetry import E, O, On, positions, trivial, vector
from equirelax.testing import NetworkConformance

package = pytest.importorskip("VN_transformer", reason="needs VN-transformer: pip install VN-transformer")

MAPS = (
    "vn_proj_in.1",
    *(f"encoder.layers.0.0.to_{name}" for name in ("q", "k", "v", "out")),
    "encoder.layers.0.2.0",
    "encoder.layers.0.2.2",
    "vn_proj_out.1",
)


def built(**settings: Any) -> nn.Module:
    return package.VNTransformer(dim=4, depth=1, dim_head=2, heads=2, **settings)


class TestVNTransformer(NetworkConformance):
    name = "VN-Transformer"
    package = "VN-transformer"
    paths = MAPS
    count = len(paths)
    cannot: ClassVar[dict[str, str]] = {"script": "it calls einops with functions that are made at run time"}

    def network(self) -> nn.Module:
        return built(translation_equivariance=True)

    def inputs(self, dtype: torch.dtype) -> Any:
        return few_atoms.draw(1, 5, 3, dtype=dtype)

    def representations(self) -> tuple[Any, Any]:
        return positions(E(3)), positions(E(3))


class WithFeatures(nn.Module):
    """Features are keyword arguments there."""

    def __init__(self) -> None:
        super().__init__()
        self.network = built(dim_feat=2)

    def forward(self, coors: Tensor, feats: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(coors, feats=feats)


class TestVNTransformerWithFeatures(TestVNTransformer):
    name = "VN-Transformer (with features)"
    paths = tuple(f"network.{path}" for path in MAPS)

    def network(self) -> nn.Module:
        return WithFeatures()

    def inputs(self, dtype: torch.dtype) -> Any:
        return few_atoms.draw(1, 5, 3, dtype=dtype), few_atoms.draw(1, 5, 2, dtype=dtype, seed=2)

    def representations(self) -> tuple[Any, Any]:
        return (vector(O(3)), None), (vector(O(3)), None)


def test_features_are_invariants_behind_the_coordinates() -> None:
    relaxation = er.relax(built(dim_feat=2).encoder)
    site = relaxation.residuals["layers.0.0.to_q"].site
    assert site.in_rep.dim == 4 * (vector(O(3)) + trivial(O(3), 2)).dim


def test_a_map_alone_is_of_vectors() -> None:
    network = package.VN_transformer.VNFeedForward(4).double()
    relaxation = er.relax(network)
    assert list(relaxation.residuals) == ["0", "2"]
    er.project(network, mode="fold")
    x = few_atoms.draw(5, 4, 3, dtype=torch.float64)
    assert er.audit(network, x, On("1x1o", -1), On("1x1o", -1)).equivariant


def test_maps_with_a_bias_are_not_relaxed() -> None:
    with pytest.raises(PlacementError):
        er.relax(built(bias_epsilon=1e-6))


def test_maps_of_an_encoder_that_does_not_tell_its_coordinates_are_of_vectors() -> None:
    encoder = built().encoder
    encoder.dim_coor = None
    relaxation = er.relax(encoder)
    assert relaxation["layers.0.0.to_q"].in_rep == 4 * vector(O(3))
