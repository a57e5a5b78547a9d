"""The ranks of the default process group: how many there are, and sums over them."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """The size of the default process group, 1 if there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def summed(local: Tensor) -> Tensor:
    """The sum of a tensor over the ranks, without gradients; the tensor itself if there is only one rank."""
    if ranks() == 1:
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return total
