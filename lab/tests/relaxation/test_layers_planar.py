"""Relaxed group convolutions: the conformance class, every kind of residual and method, and what they cannot be."""

from __future__ import annotations

import torch
from equirelax_lab.models import GroupConv2d
from torch import Tensor, nn

from equirelax.symmetry import Cyclic, Dihedral, Representation, regular, sign, trivial, vector
from equirelax.symmetry.fields import GridField
from equirelax.testing import LayerFamilyConformance

torch.set_num_threads(1)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def convolutions(*layers: GroupConv2d) -> nn.Sequential:
    """In float64, with weights that are always the same."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                / parameter.numel() ** 0.5
            )
    return model


class Planar(LayerFamilyConformance):
    group = Cyclic(4)
    path = "1"
    stride = 1
    padding_mode = "zeros"

    def fields(self) -> tuple[Representation, Representation, Representation]:
        return (
            vector(self.group) + trivial(self.group),
            regular(self.group) + trivial(self.group),
            vector(self.group),
        )

    def build(self):  # type: ignore[no-untyped-def]
        first, hidden, last = self.fields()
        model = convolutions(
            GroupConv2d(first, hidden, 3, padding_mode=self.padding_mode),
            GroupConv2d(hidden, last, 3, stride=self.stride, padding_mode=self.padding_mode),
        )
        return model, self.path, draw(3, first.dim, 9, 9), GridField(first), GridField(last)


class TestC4(Planar):
    pass


class TestC4First(Planar):
    path = "0"


class TestC4Stride(Planar):
    stride = 2
    padding_mode = "reflect"


class TestD4(Planar):
    group = Dihedral(4)

    def fields(self):  # type: ignore[no-untyped-def]
        group = self.group
        return vector(group), sign(group) + vector(group), regular(group) + sign(group)


class TestD1(Planar):
    group = Dihedral(1)


class TestC2(Planar):
    group = Cyclic(2)
    padding_mode = "circular"
