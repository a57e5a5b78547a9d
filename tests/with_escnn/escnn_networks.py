"""Small escnn networks for the tests. `recompute=True` gives each layer a basis of its own, which `double()` may cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from escnn import gspaces
from escnn import nn as enn
from torch import Tensor, nn

from equirelax.relaxation.layers.escnn import exact_bases

SPACES: dict[str, Callable[[], Any]] = {
    "C1": gspaces.trivialOnR2,
    "C2": lambda: gspaces.rot2dOnR2(2),
    "C4": lambda: gspaces.rot2dOnR2(4),
    "flips": gspaces.flip2dOnR2,
    "D1": lambda: gspaces.flip2dOnR2(axis=0.0),
    "D4": lambda: gspaces.flipRot2dOnR2(4),
    "D4 along x": lambda: gspaces.flipRot2dOnR2(4, axis=0.0),
    "C8": lambda: gspaces.rot2dOnR2(8),
    "SO(2)": lambda: gspaces.rot2dOnR2(-1, maximum_frequency=3),
    "O(2)": lambda: gspaces.flipRot2dOnR2(-1, maximum_frequency=3),
}
ON_THE_GRID = ("C1", "C2", "C4", "flips", "D1", "D4", "D4 along x")
OFF_THE_GRID = ("C8", "SO(2)", "O(2)")


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hidden(space: Any, copies: int = 1) -> list[Any]:
    """Fields of several kinds, those of one kind not all next to each other."""
    if space.fibergroup.continuous:
        frequencies = [space.irrep(*irrep.id) for irrep in space.irreps if irrep.size == 2][:2]
        return [space.trivial_repr, *copies * frequencies, space.trivial_repr]
    return [space.trivial_repr, *copies * [space.regular_repr], space.basespace_action, space.trivial_repr]


def fill(model: nn.Module, seed: int = 0) -> None:
    """Weights that are always the same and of order 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)


class Network(nn.Module):
    """Plain tensors in, plain tensors out: vector and scalar fields, three convolutions, norms, one non-linearity."""

    def __init__(self, space: Any, size: int = 3, stride: int = 1, padding: int | None = None) -> None:
        super().__init__()
        self.in_type = enn.FieldType(space, [space.trivial_repr, space.basespace_action])
        self.out_type = enn.FieldType(space, [space.basespace_action])
        fields = [space.trivial_repr] if space.fibergroup.continuous else [space.regular_repr]
        features = enn.FieldType(space, fields * 2)
        pad = size // 2 if padding is None else padding
        self.first = enn.R2Conv(self.in_type, features, size, padding=size // 2, recompute=True)
        self.norm = enn.InnerBatchNorm(features)
        self.relu = enn.ReLU(features)
        self.second = enn.R2Conv(features, features, size, padding=pad, stride=stride, recompute=True)
        self.last = enn.R2Conv(features, self.out_type, size, padding=size // 2, recompute=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.first(enn.GeometricTensor(x, self.in_type))))
        return self.last(self.relu(self.second(y))).tensor


def network(space: str, exact: bool = True, **settings: Any) -> Network:
    """In float64."""
    model = Network(SPACES[space](), **settings).double()
    fill(model)
    if exact:
        exact_bases(model)
    return model
