"""Minimal networks of the form of TensorNet; that of TorchMD-NET is tested in `tests/with_schnetpack`."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from minimal.tensornet import TensorNet
from torch import nn

import equirelax as er
from equirelax.errors import PlacementError
from equirelax.symmetry import SE, E, O, positions
from equirelax.testing import NetworkConformance


class TestTensorNet(NetworkConformance):
    name = "TensorNet (minimal)"
    paths = (
        "tensor_embedding.linears_tensor.1",
        "tensor_embedding.linears_tensor.2",
        "layers.0.linears_tensor.1",
        "layers.0.linears_tensor.2",
        "layers.0.linears_tensor.4",
        "layers.0.linears_tensor.5",
    )
    count = len(paths)
    cannot: ClassVar[dict[str, str]] = {"script": "the network holds lists of modules that are indexed"}

    def network(self) -> nn.Module:
        return TensorNet(2, 1)

    def inputs(self, dtype: torch.dtype) -> Any:
        place = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        return torch.tensor([6, 1, 1, 8]), place.to(dtype)

    def representations(self) -> tuple[Any, Any]:
        return (None, positions(E(3))), None


class TestTensorNetChannelsFirst(TestTensorNet):
    name = "TensorNet (minimal, channels first)"

    def network(self) -> nn.Module:
        return TensorNet(2, 1, group="SO(3)", channels_first=True)

    def representations(self) -> tuple[Any, Any]:
        return (None, positions(SE(3))), None


def test_what_the_residuals_break_is_the_group_that_the_network_is_built_for() -> None:
    for group in ("O(3)", "SO(3)"):
        relaxation = er.relax(TensorNet(2, 1, group=group))
        assert {row.relaxes for row in relaxation.summary().with_status("relaxed")} == {group}


def test_parts_of_tensors_transform_as_the_residuals_say() -> None:
    """The tensors of the network itself, under a reflection too: read where a map is called."""
    network = TensorNet(2, 1).double()
    relaxation = er.relax(network)
    site = relaxation.residuals["tensor_embedding.linears_tensor.1"].site
    seen: list[torch.Tensor] = []
    handle = network.tensor_embedding.linears_tensor[1].register_forward_pre_hook(
        lambda module, args: seen.append(site.read(args, {}))
    )
    elements = [*O(3).discrete(), *O(3).sample(2)]
    place = torch.randn(4, 3, dtype=torch.float64)
    for element in (torch.eye(3, dtype=torch.float64), *elements):
        network(torch.tensor([6, 1, 1, 8]), place @ element.to(torch.float64).T)
    handle.remove()
    for element, found in zip(elements, seen[1:], strict=True):
        assert torch.allclose(site.in_rep.apply(element.to(torch.float64), seen[0]), found, atol=1e-12)


def test_a_network_of_another_form_is_not_taken_for_one() -> None:
    network = TensorNet(2, 1)
    network.layers[0].linears_tensor.append(nn.Linear(2, 2, bias=False))
    with pytest.raises(PlacementError):
        er.relax(network)
