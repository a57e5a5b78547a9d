"""Turns and flips of fields, written out by hand: what the tests of the networks on the plane compare with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def turned(x: Tensor) -> Tensor:
    """Vector fields (..., 2, H, W) turned by 90 degrees, counter-clockwise: (x, y) -> (-y, x)."""
    grid = x.rot90(1, (-2, -1))
    return torch.stack([-grid[..., 1, :, :], grid[..., 0, :, :]], dim=-3)


def flipped(x: Tensor) -> Tensor:
    """Vector fields (..., 2, H, W) upside down: (x, y) -> (x, -y)."""
    grid = x.flip(-2)
    return torch.stack([grid[..., 0, :, :], -grid[..., 1, :, :]], dim=-3)


ACTIONS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "C2": [lambda x: turned(turned(x))],
    "C4": [turned],
    "D2": [lambda x: turned(turned(x)), flipped],
    "D4": [turned, flipped],
}
"""Generators of each group."""


def asymmetry(model: Callable[[Tensor], Tensor], x: Tensor, group: str) -> float:
    """Largest difference between acting before and after the model, relative to its output."""
    expected = model(x)
    gaps = [(model(act(x)) - act(expected)).abs().max() for act in ACTIONS[group]]
    return float((torch.stack(gaps).max() / expected.abs().max()).detach())
