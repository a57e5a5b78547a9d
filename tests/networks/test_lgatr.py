"""L-GATr from its package, between momenta."""

from __future__ import annotations

from typing import Any, ClassVar

import few_atoms
import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import PlacementError
from equirelax.relaxation.networks.lgatr import multivectors
from equirelax.symmetry import Lorentz, vector
from equirelax.testing import NetworkConformance

lgatr = pytest.importorskip("lgatr", reason="needs L-GATr: pip install lgatr")


class Momenta(nn.Module):
    """From momenta (particles, 4) to momenta."""

    def __init__(self, subgroup: bool) -> None:
        super().__init__()
        self.network = lgatr.LGATr(
            num_blocks=1, in_mv_channels=1, out_mv_channels=1, hidden_mv_channels=2, in_s_channels=0, out_s_channels=1,
            hidden_s_channels=2, attention={"num_heads": 1}, mlp={"mlp_ratio": 1}, primitives={"subgroup": subgroup},
        )  # fmt: skip

    def forward(self, momenta: Tensor) -> tuple[Tensor, Tensor]:
        found, scalars = self.network(lgatr.embed_vector(momenta)[None, :, None])
        return lgatr.extract_vector(found)[0, :, 0], scalars


class TestLGATr(NetworkConformance):
    name = "L-GATr"
    package = "lgatr"
    subgroup = True
    no_matrices = ("*.weight_mv",)
    cannot: ClassVar[dict[str, str]] = {"script": "its forward takes any keyword arguments"}
    paths = (
        "network.linear_in",
        "network.blocks.0.attention.qkv_module.in_linear",
        "network.blocks.0.attention.out_linear",
        "network.blocks.0.mlp.layers.0.linear_left",
        "network.blocks.0.mlp.layers.0.linear_right",
        "network.blocks.0.mlp.layers.0.linear_out",
        "network.blocks.0.mlp.layers.2",
        "network.linear_out",
    )
    count = len(paths)

    def network(self) -> nn.Module:
        return Momenta(self.subgroup)

    def inputs(self, dtype: torch.dtype) -> Any:
        """Momenta of particles of mass 1."""
        momenta = 0.5 * few_atoms.draw(5, 3, dtype=torch.float64)
        energies = (1 + momenta.square().sum(dim=-1, keepdim=True)).sqrt()
        return torch.cat([energies, momenta], dim=-1).to(dtype)

    def representations(self) -> tuple[Any, Any]:
        return vector(Lorentz()), (vector(Lorentz()), None)


class TestLGATrOfTheFullGroup(TestLGATr):
    name = "L-GATr (full Lorentz group)"
    subgroup = False


def test_multivectors_transform_as_products_of_vectors() -> None:
    g = Lorentz().sample(1, generator=torch.Generator().manual_seed(0)).double()[0]
    x, y, z = few_atoms.draw(3, 4, dtype=torch.float64)
    product = lgatr.primitives.bilinear.geometric_product

    def wedge(*vectors: Tensor) -> Tensor:
        first, *others = (lgatr.embed_vector(v) for v in vectors)
        for other in others:
            first = product(first, other, config=lgatr.primitives.config.PrimitivesConfig())
        return first

    rep = multivectors(1)
    for vectors in ((x,), (x, y), (x, y, z)):
        moved = wedge(*(g @ v for v in vectors))
        assert torch.allclose(rep.apply(g, wedge(*vectors)), moved, atol=1e-10)


def test_a_layer_of_another_algebra_is_not_taken_for_one() -> None:
    network = Momenta(True).network.linear_out
    network.weight = nn.Parameter(network.weight[..., :9])
    with pytest.raises(PlacementError):
        er.relax(network)
