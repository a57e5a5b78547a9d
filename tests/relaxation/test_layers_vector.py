"""Modules with `channel_axis` and `vector_axis`: those that are no linear maps, and batches without rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.errors import PlacementError
from equirelax.relaxation.layers import family
from equirelax.relaxation.layers.vector import VectorNeuronLinear


class Vectors(nn.Module):
    channel_axis, vector_axis = -2, -1

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outs, ins))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x


class Pool(nn.Module):
    """Has the axes and no weight."""

    channel_axis, vector_axis = -2, -1

    def forward(self, x: Tensor) -> Tensor:
        return x


class Norm(Pool):
    """Has a weight for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("part", [Pool, Norm])
def test_a_module_without_a_matrix_over_channels_is_left_alone(part: type[nn.Module]) -> None:
    relaxation = er.relax(nn.Sequential(Vectors(2, 3), part()))
    assert list(relaxation.residuals) == ["0"]
    row = next(row for row in relaxation.summary().rows if row.path == "1")
    assert (row.status, "(out, in)" in row.reason) == ("skipped", True)
    with pytest.raises(PlacementError, match=r"\(out, in\)"):
        er.relax(nn.Sequential(part()))


def test_what_a_family_refuses_may_be_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(VectorNeuronLinear):
        def site(self, path: str, module: nn.Module) -> family.Skip:
            raise PlacementError(f"{path} cannot be relaxed")

        def matches(self, module: nn.Module) -> bool:
            return isinstance(module, Pool)

    monkeypatch.setitem(family._FAMILIES, "vector-neuron", Refusing())
    monkeypatch.setitem(family._FAMILIES, "second", VectorNeuronLinear())
    with pytest.raises(PlacementError, match="1"):
        er.relax(nn.Sequential(Vectors(2, 3), Pool()))
    relaxation = er.relax(nn.Sequential(Vectors(2, 3), Pool()), exclude="1")
    assert list(relaxation.residuals) == ["0"]
    assert next(row for row in relaxation.summary().rows if row.path == "1").status == "skipped"


@pytest.mark.parametrize("points", [(), (4,), (0,)])
def test_a_batch_without_rows(points: tuple[int, ...]) -> None:
    layer = Vectors(2, 3)
    layer.channel_axis, layer.vector_axis = 1, 2
    layer.forward = lambda x: torch.einsum("oc,bc...->bo...", layer.weight, x)  # type: ignore[method-assign]
    er.relax(layer)
    for rows in (0, 2):
        assert layer(torch.zeros(rows, 2, 3, *points)).shape == (rows, 3, 3, *points)
