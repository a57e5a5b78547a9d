"""Parameters that `torch.distributed.fsdp.fully_shard` has split over processes, as one tensor."""

from __future__ import annotations

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or of one that is sharded all of it: gradients are averaged over the processes, as FSDP does."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import Partial

    full: Tensor = tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)  # type: ignore[attr-defined]
    return full
