"""Allegro (Musaelian et al., arXiv 2204.05249) from its package: its network file."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.symmetry import E, positions, vector
from equirelax.testing import NetworkConformance

pytest.importorskip("nequip", reason="needs NequIP: pip install '.[networks]'")
pytest.importorskip("allegro", reason="needs Allegro: pip install '.[networks]'")
from scripted import scripted
from test_nequip import EnergyAndForces, graph
from undisturbed import undisturbed


class TestAllegro(NetworkConformance):
    name = "Allegro"
    package = "nequip-allegro"
    count = 2
    paths = ("0.model.func.allegro.tps.0", "0.model.func.allegro.tps.1")
    no_matrices = ("*.tps.*.weights",)
    cannot: ClassVar = {
        "export": "forces are a gradient that it takes itself, which torch.export cannot follow; nequip-compile can",
    }

    def network(self) -> nn.Module:
        from allegro.model import AllegroModel
        from nequip.utils.global_state import set_global_state

        dtype = str(torch.get_default_dtype()).removeprefix("torch.")
        radial = {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4}
        with undisturbed():
            set_global_state()
            network = AllegroModel(
                seed=0, model_dtype=dtype, r_max=4.0, type_names=["H", "C", "O"], l_max=1, num_layers=2,
                num_scalar_features=8, num_tensor_features=3, scalar_embed_mlp_hidden_layers_width=8,
                allegro_mlp_hidden_layers_width=8, readout_mlp_hidden_layers_width=8, radial_chemical_embed=radial,
                avg_num_neighbors=3.0, per_type_energy_scales=1.0, per_type_energy_shifts=0.0,
            )  # fmt: skip
        return EnergyAndForces(network)

    def inputs(self, dtype: torch.dtype) -> tuple[dict[str, Tensor]]:
        return (graph(dtype),)

    def representations(self) -> tuple[Any, Any]:
        return ({"pos": positions(E(3))},), (None, vector(E(3)))

    def script(self, network: nn.Module, sample: Any) -> nn.Module:
        return EnergyAndForces(scripted(network[0]))

    def test_a_residual_maps_all_components_of_all_channels_of_an_edge(self) -> None:
        """By hand, from the product's own input and output, (edges, 3 channels, components)."""
        relaxation = self.relaxed()
        residual, product = relaxation[self.paths[0]], relaxation.module(self.paths[0])
        seen: dict[str, Tensor] = {}
        product.register_forward_hook(lambda _, args, out: seen.update(x=args[0], out=out))
        self.outputs(relaxation.model)
        relaxed = dict(seen)
        with relaxation.strict():
            self.outputs(relaxation.model)
        weight = residual.linear_map.effective_weight().detach()
        scalars, vectors = relaxed["x"][..., :1].flatten(1), relaxed["x"][..., 1:].flatten(1)
        added = torch.cat([scalars, vectors], dim=1) @ weight.T
        edges, channels, components = seen["out"].shape
        blocks = [channels * ir.dim for _, ir in product.irreps_out]
        parts = [part.reshape(edges, channels, -1) for part in added.split(blocks, dim=1)]
        expected = seen["out"] + torch.cat(parts, dim=-1)
        torch.testing.assert_close(relaxed["out"], expected, rtol=1e-12, atol=1e-12)
        assert added.norm() > 0.1
        assert components == product.irreps_out.dim


def test_modules_with_its_name_and_another_structure_are_none() -> None:
    class Allegro_Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tps = nn.ModuleList([nn.Linear(3, 3)])

    with pytest.raises(er.errors.PlacementError, match="nothing to relax"):
        er.relax(Allegro_Module())


def test_products_of_invariants_are_left_alone() -> None:
    """A network with l_max 0 has no equivariance to relax."""
    irreps = pytest.importorskip("e3nn.o3").Irreps("1x0e")

    class Product(nn.Module):
        irreps_in1 = irreps_out = irreps
        mul = 3

    class Allegro_Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tps = nn.ModuleList([Product()])

    with pytest.raises(er.errors.PlacementError, match=r"tps\.0: maps invariants to invariants"):
        er.relax(Allegro_Module())
