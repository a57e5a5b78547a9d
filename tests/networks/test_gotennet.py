"""A minimal network of the form of GotenNet, whose package needs torch-cluster and torch-scatter."""

from __future__ import annotations

from typing import Any, ClassVar

import few_atoms
import pytest
import torch
from minimal.gotennet import GATA, GotenNet
from torch import nn

import equirelax as er
from equirelax.errors import PlacementError
from equirelax.symmetry import E, On, from_irreps, positions
from equirelax.testing import NetworkConformance


class TestGotenNet(NetworkConformance):
    name = "GotenNet (minimal)"
    paths = (
        "gata_list.0.W_vq",
        "gata_list.0.W_vk.0",
        "gata_list.0.W_vk.1",
        "eqff_list.0.W_vu",
        "eqff_list.1.W_vu",
    )
    count = len(paths)
    cannot: ClassVar[dict[str, str]] = {"script": "it zips lists of modules"}

    def network(self) -> nn.Module:
        return GotenNet(4, 2)

    def inputs(self, dtype: torch.dtype) -> Any:
        return torch.tensor(few_atoms.NUMBERS), few_atoms.positions(dtype)

    def representations(self) -> tuple[Any, Any]:
        return (None, positions(E(3))), (None, On(from_irreps("1x1o+1x2e", E(3)), -2))


def test_one_map_of_keys_for_all_degrees() -> None:
    network = GotenNet(4, 2, lmax=1, sep_htr=False)
    assert list(er.relax(network.gata_list).residuals) == ["0.W_vq", "0.W_vk"]


@pytest.mark.parametrize(
    "block",
    [
        GATA(4, 3, True, last_layer=False),  # of degree 3
        GATA(4, 2, True, last_layer=True),  # without maps of features
    ],
)
def test_a_block_without_maps_that_are_known_is_not_relaxed(block: nn.Module) -> None:
    with pytest.raises(PlacementError):
        er.relax(block)


def test_a_block_with_too_few_maps_is_not_taken_for_one() -> None:
    block = GATA(4, 2, True, last_layer=False)
    del block.W_vk[1]
    with pytest.raises(PlacementError):
        er.relax(block)
