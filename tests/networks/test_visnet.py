"""PyTorch Geometric's ViSNet. Its graph builder needs pyg-lib, so that a complete graph takes its place."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import PlacementError
from equirelax.symmetry import E, O, positions
from equirelax.testing import NetworkConformance

models = pytest.importorskip("torch_geometric.nn.models", reason="ViSNet is PyTorch Geometric's")
visnet = pytest.importorskip("torch_geometric.nn.models.visnet", reason="ViSNet is PyTorch Geometric's")

READOUT = tuple(
    f"output_model.output_network.{name}" for name in ("0.vec1_proj", "0.vec2_proj", "1.vec1_proj")
)


class CompleteGraph(nn.Module):
    """All pairs of atoms, each with itself too, as `Distance` gives them."""

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = pos.shape[0]
        edges = torch.cartesian_prod(torch.arange(count), torch.arange(count)).T
        between = pos[edges[0]] - pos[edges[1]]
        apart = edges[0] != edges[1]
        length = torch.zeros_like(between[:, 0])
        length[apart] = between[apart].norm(dim=-1)
        return edges, length, between


def built(lmax: int, vertex: bool) -> nn.Module:
    network = models.ViSNet(
        lmax=lmax,
        vertex=vertex,
        vecnorm_type="max_min" if vertex else None,
        num_heads=2,
        num_layers=3,
        hidden_channels=4,
        num_rbf=4,
    )
    network.representation_model.distance = CompleteGraph()
    return network


class TestViSNet(NetworkConformance):
    name = "ViSNet"
    package = "torch-geometric"
    lmax, vertex = 1, False
    maps = ("1.vec_proj", "1.w_src_proj", "1.w_trg_proj", "2.vec_proj")
    paths = (*(f"representation_model.vis_mp_layers.{name}" for name in maps), *READOUT)
    count = len(paths)
    cannot: ClassVar[dict[str, str]] = {
        "export": "it branches on the entries of a tensor",
        "script": "its message passing is made at run time",
    }

    def network(self) -> nn.Module:
        return built(self.lmax, self.vertex)

    def inputs(self, dtype: torch.dtype) -> Any:
        place = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        return torch.tensor([6, 1, 1, 8]), place.to(dtype), torch.zeros(4, dtype=torch.long)

    def representations(self) -> tuple[Any, Any]:
        return (None, positions(E(3)), None), None


class TestViSNetOfDegreeTwo(TestViSNet):
    name = "ViSNet (degrees 1 and 2, vertex features, normalised)"
    lmax, vertex = 2, True
    maps = ("1.vec_proj", "1.w_src_proj", "1.w_trg_proj", "1.t_src_proj", "1.t_trg_proj", "2.vec_proj")
    paths = (*(f"representation_model.vis_mp_layers.{name}" for name in maps), *READOUT)
    count = len(paths)


def test_features_of_degree_two_transform_as_the_residuals_say() -> None:
    relaxation = er.relax(built(2, False))
    rep = relaxation.residuals["representation_model.vis_mp_layers.1.vec_proj"].in_rep
    x = nn.functional.normalize(torch.randn(4, 3, dtype=torch.float64), dim=-1)
    harmonics = visnet.Sphere(lmax=2)
    for g in (*O(3).discrete(), *O(3).sample(2)):
        g = g.to(torch.float64)
        # the features of four channels, vectors first, then those of degree 2, each channel by channel
        before, after = (
            torch.cat([part.flatten() for part in harmonics(y).split([3, 5], dim=-1)]) for y in (x, x @ g.T)
        )
        assert torch.allclose(rep.apply(g, before), after, atol=1e-12)


def test_the_representation_alone_is_recognised() -> None:
    network = built(1, False).representation_model
    assert list(er.relax(network).residuals) == [f"vis_mp_layers.{name}" for name in TestViSNet.maps]


def test_a_layer_of_another_form_is_not_taken_for_one() -> None:
    network = built(1, False).representation_model
    network.vis_mp_layers[1].w_src_proj = nn.Linear(4, 4)
    with pytest.raises(PlacementError):
        er.relax(network)


def test_a_readout_of_another_name_is_left_alone() -> None:
    network = built(1, False)
    del network.output_model
    paths = [f"representation_model.vis_mp_layers.{name}" for name in TestViSNet.maps]
    assert list(er.relax(network).residuals) == paths
