"""TorchMD-NET's equivariant transformer and TensorNet, with its scalar and its vector readout."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torchmdnet.models.model import TorchMD_Net
from torchmdnet.models.output_modules import EquivariantScalar, Scalar
from torchmdnet.models.tensornet import TensorNet
from torchmdnet.models.torchmd_et import TorchMD_ET

from equirelax.symmetry import E, positions
from equirelax.testing import NetworkConformance


class Molecule(NetworkConformance):
    """A molecule of four atoms, to an energy."""

    package = "torchmd-net"

    def inputs(self, dtype: torch.dtype) -> Any:
        generator = torch.Generator().manual_seed(4)
        place = torch.randn(4, 3, dtype=torch.float64, generator=generator).to(dtype)
        batch = torch.zeros(4, dtype=torch.long)
        return {"z": torch.tensor([6, 1, 1, 8]), "pos": place, "batch": batch, "num_systems": 1}

    def representations(self) -> tuple[Any, Any]:
        return {"pos": positions(E(3))}, None


class TestTorchMDET(Molecule):
    name = "TorchMD-ET"
    cannot: ClassVar[dict[str, str]] = {
        "export": "it branches on the entries of a tensor, in its neighbour embedding and its readout"
    }
    paths = (
        "representation_model.attention_layers.1.vec_proj",
        "output_model.output_network.0.vec1_proj",
        "output_model.output_network.0.vec2_proj",
        "output_model.output_network.1.vec1_proj",
    )
    count = len(paths)

    def network(self) -> nn.Module:
        dtype = torch.get_default_dtype()
        representation = TorchMD_ET(hidden_channels=8, num_layers=2, num_rbf=4, num_heads=2, dtype=dtype)
        return TorchMD_Net(representation, EquivariantScalar(8, dtype=dtype), dtype=dtype)


class TestTensorNet(Molecule):
    name = "TensorNet"
    paths = tuple(
        f"representation_model.{block}.linears_tensor.{i}"
        for block, maps in (("tensor_embedding", (1, 2)), ("layers.0", (1, 2, 4, 5)))
        for i in maps
    )
    count = len(paths)

    def network(self) -> nn.Module:
        dtype = torch.get_default_dtype()
        representation = TensorNet(8, num_layers=1, num_rbf=4, cutoff_lower=0.0, dtype=dtype)
        return TorchMD_Net(representation, Scalar(8, dtype=dtype), dtype=dtype)
