"""Random rotations for augmenting a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from equirelax.symmetry import SO, O


def random_rotation(
    generator: torch.Generator,
    *,
    count: int | None = None,
    reflections: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """A Haar-distributed (3, 3) matrix of SO(3), or of O(3) with `reflections`; (count, 3, 3) with `count`.

    CR turns every batch by one rotation of its own: `data.batch(indices, random_rotation(generator))`. It is
    drawn on the generator's device and then moved to `device`.
    """
    group = O(3) if reflections else SO(3)
    drawn = group.sample(
        1 if count is None else count, generator=generator, dtype=torch.float64, device=generator.device
    )
    drawn = drawn.to(device=device, dtype=dtype)
    return drawn[0] if count is None else drawn
