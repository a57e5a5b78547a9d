"""Networks of equivariant layers on vectors, small enough to see through, for tests of the handle."""

from __future__ import annotations

import copy

import torch
from torch import nn

import equirelax as er
from equirelax.relaxation import Linear
from equirelax.symmetry import O, vector

VECTORS = vector(O(3))
DECLARED = er.Layers(declare=(Linear("Linear", VECTORS, VECTORS),))


def linear() -> nn.Linear:
    layer = nn.Linear(3, 3, bias=False)
    layer.weight.data = torch.eye(3) * torch.randn(())
    return layer


class Part(nn.Module):
    """Two layers, under names of one's own or those that every part has."""

    def __init__(self, first: str = "a", second: str = "b") -> None:
        super().__init__()
        self.names = (first, second)
        for name in self.names:
            self.add_module(name, linear())

    def forward(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return x


class Pair(nn.Module):
    def __init__(self, other: tuple[str, str] = ("a", "b")) -> None:
        super().__init__()
        self.enc, self.dec = Part(), Part(*other)

    def forward(self, x):
        return self.dec(self.enc(x))


def fill(relaxation: er.Relaxation, gamma: float = 0.7) -> er.Relaxation:
    for parameter in relaxation.residual_parameters().values():
        nn.init.normal_(parameter)
    relaxation.set_gamma(gamma)
    return relaxation


def both_relaxed(other: tuple[str, str] = ("a", "b")) -> tuple[Pair, er.Relaxation, nn.Module]:
    author = Pair(other)
    model = copy.deepcopy(author)
    er.relax(model.enc, DECLARED)
    er.relax(model.dec, DECLARED)
    return model, fill(er.relaxation_of(model)), author


X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def nothing_left(model: nn.Module) -> bool:
    return not any(
        m._forward_hooks or m._forward_pre_hooks or any("equirelax" in key for key in m.__dict__)
        for m in model.modules()
    ) and not any("equirelax" in key for key in model.state_dict())
