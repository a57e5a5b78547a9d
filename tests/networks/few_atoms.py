"""A molecule of four atoms without any symmetry, in the forms in which networks want it."""

from __future__ import annotations

import torch
from torch import Tensor

NUMBERS = (6, 8, 1, 1)
"""The atomic numbers."""


def positions(dtype: torch.dtype) -> Tensor:
    """Where the atoms are, (4, 3), in Angstrom."""
    where = [[0.0, 0.1, 0.0], [1.2, 0.0, 0.2], [-0.6, 0.9, 0.1], [-0.5, -0.8, 0.4]]
    return torch.tensor(where, dtype=dtype)


def types() -> Tensor:
    """The index of every atom's element in H, C, O."""
    return torch.tensor([(1, 6, 8).index(number) for number in NUMBERS])


def edges() -> Tensor:
    """All pairs of different atoms, (2, 12)."""
    return (~torch.eye(len(NUMBERS), dtype=torch.bool)).nonzero().T.contiguous()


def draw(*shape: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    """Normally distributed numbers, the same in every dtype but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
