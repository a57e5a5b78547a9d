"""SevenNet (Park et al., arXiv 2402.03789) from its package: e3nn's layers inside of modules that take and give dictionaries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from equirelax.symmetry import O, vector
from equirelax.testing import NetworkConformance

pytest.importorskip("sevenn", reason="needs SevenNet: pip install '.[networks]'")
import few_atoms
from e3nn.util.jit import compile_mode
from scripted import scripted
from sevenn import _const as const
from sevenn import _keys as keys
from sevenn.model_build import build_E3_equivariant_model


class EnergyAndForces(nn.Sequential):
    """Of all that SevenNet returns, what transforms."""

    def forward(self, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        out = self[0](data)
        return out[keys.PRED_TOTAL_ENERGY], out[keys.PRED_FORCE]


@compile_mode("script")
class OneHot(nn.Module):
    """Species as one-hot vectors in the dtype of the edges; SevenNet's own module makes them in float32."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        species = data["x"]
        data["x"] = nn.functional.one_hot(species, self.classes).to(data["edge_vec"].dtype)
        data["node_attr"] = data["x"]
        data["atom_type"] = species
        return data


class TestSevenNet(NetworkConformance):
    name = "SevenNet"
    package = "sevenn"
    count = 6
    paths = (
        "0.0_self_connection_intro.fc_tensor_product",
        "0.0_convolution.convolution",
        "0.0_self_interaction_2.linear",
        "0.1_self_connection_intro.fc_tensor_product",
        "0.1_self_interaction_1.linear",
        "0.1_convolution.convolution",
    )
    cannot: ClassVar = {
        "export": "it reads the number of graphs off the data, on which torch.export cannot branch",
    }
    remarks = "float32 only as published: the test makes its one-hot species in float64 too"
    self_connection: ClassVar[str] = "nequip"

    def network(self) -> nn.Module:
        config = copy.deepcopy(const.DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG)
        config |= {
            keys.NUM_SPECIES: 3, keys.TYPE_MAP: {1: 0, 6: 1, 8: 2}, keys.NODE_FEATURE_MULTIPLICITY: 4, keys.LMAX: 1,
            keys.NUM_CONVOLUTION: 2, keys.CUTOFF: 4.0, keys.CONV_DENOMINATOR: 3.0, keys.SHIFT: 0.0, keys.SCALE: 1.0,
            keys.CONVOLUTION_WEIGHT_NN_HIDDEN_NEURONS: [8], keys.SELF_CONNECTION_TYPE: self.self_connection,
            keys.RADIAL_BASIS: {keys.RADIAL_BASIS_NAME: "bessel", "bessel_basis_num": 4},
        }  # fmt: skip
        network = build_E3_equivariant_model(config).to(torch.get_default_dtype())
        network.replace_module("onehot_idx_to_onehot", OneHot(3))
        return EnergyAndForces(network)

    def inputs(self, dtype: torch.dtype) -> tuple[dict[str, Tensor]]:
        where, edges = few_atoms.positions(dtype), few_atoms.edges()
        numbers = torch.tensor(few_atoms.NUMBERS)
        data = {
            keys.ATOMIC_NUMBERS: numbers,
            keys.NODE_FEATURE: numbers,
            keys.POS: where,
            keys.EDGE_IDX: edges,
            keys.EDGE_VEC: where[edges[1]] - where[edges[0]],
            keys.BATCH: torch.zeros(len(numbers), dtype=torch.long),
            keys.CELL_VOLUME: torch.ones(1, dtype=dtype),
            keys.NUM_ATOMS: torch.tensor([len(numbers)]),
        }
        return (data,)

    def representations(self) -> tuple[Any, Any]:
        return ({keys.EDGE_VEC: vector(O(3))},), (None, vector(O(3)))

    def script(self, network: nn.Module, sample: Any) -> Callable[..., Any]:
        """As SevenNet deploys it: it is called with the species' indices in the place of their atomic numbers."""
        network[0].eval_type_map = False
        data = {**sample[0], keys.NODE_FEATURE: few_atoms.types()}
        deployed = EnergyAndForces(scripted(network[0]))
        return lambda _: deployed(data)


@pytest.mark.slow
class TestSevenNetLinear(TestSevenNet):
    """The form of SevenNet-0: its self-connection is a linear map."""

    name = "SevenNet, linear self-connection"
    paths = tuple(path.replace("intro.fc_tensor_product", "intro.linear") for path in TestSevenNet.paths)
    self_connection = "linear"
