"""Geometric vector perceptrons of the form of gvp-pytorch, which is on no index."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from minimal.gvp import GVP, GVPModel
from torch import nn

import equirelax as er
from equirelax.errors import PlacementError
from equirelax.symmetry import E, On, positions, vector
from equirelax.testing import NetworkConformance


class TestGVP(NetworkConformance):
    name = "GVP (minimal)"
    paths = ("message.0.wh", "message.0.wv", "message.1.wh", "message.1.wv", "readout.wh")
    count = len(paths)
    cannot: ClassVar[dict[str, str]] = {"script": "it gives pairs or single tensors"}

    def network(self) -> nn.Module:
        return GVPModel(3, 2)

    def inputs(self, dtype: torch.dtype) -> Any:
        generator = torch.Generator().manual_seed(4)
        drawn = (
            torch.randn(4, *size, dtype=torch.float64, generator=generator) for size in ((3,), (2, 3), (3,))
        )
        return tuple(each.to(dtype) for each in drawn)

    def representations(self) -> tuple[Any, Any]:
        vectors = On(vector(E(3)), -1)
        return (None, vectors, positions(E(3))), (None, vectors)


@pytest.mark.parametrize(
    ("name", "linear"), [("wh", nn.Linear(2, 2)), ("wv", nn.Linear(2, 5, bias=False)), ("h_dim", 3)]
)
def test_a_perceptron_of_another_form_is_not_taken_for_one(name: str, linear: Any) -> None:
    network = GVP((1, 2), (1, 2))
    setattr(network, name, linear)
    with pytest.raises(PlacementError):
        er.relax(network)


def test_a_perceptron_without_vectors_is_not_taken_for_one() -> None:
    network = GVP((1, 2), (1, 2))
    network.vi = 0
    with pytest.raises(PlacementError):
        er.relax(network)
