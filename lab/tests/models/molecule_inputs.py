"""Molecules and small networks for the tests of energies and forces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from equirelax_lab.models import Equiformer, SE3Transformer
from torch import Tensor

SIZES = (4, 1, 6)
HIDDEN = "8x0e+4x1o+4x2e"
Molecules = tuple[Tensor, Tensor, Tensor]


def molecules(seed: int = 3, sizes: tuple[int, ...] = SIZES) -> Molecules:
    """Numbers (n,), positions (n, 3) in float64, batch (n,)."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    where = 1.5 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    numbers = torch.tensor([1, 6, 7, 8])[torch.randint(0, 4, (count,), generator=generator)]
    return numbers, where, torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def equiformer(**changes: Any) -> Equiformer:
    """Two blocks, in the default dtype, the same at every call."""
    torch.manual_seed(0)
    sizes = {"blocks": 2, "heads": 2, "cutoff": 3.0, "basis": 6, "radial_width": 8, "readout": 8}
    return Equiformer(**{"hidden": HIDDEN, "ffn_factor": 2, **sizes, **changes})


def se3_transformer(**changes: Any) -> SE3Transformer:
    """Two layers, in the default dtype, the same at every call."""
    torch.manual_seed(0)
    sizes = {"layers": 2, "heads": 2, "cutoff": 3.0, "basis": 6, "radial_width": 8, "readout": 8}
    return SE3Transformer(**{"hidden": HIDDEN, **sizes, **changes})


NETWORKS: tuple[Callable[..., Any], ...] = (equiformer, se3_transformer)
