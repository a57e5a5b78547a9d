"""The memory that a stack of runs takes, measured with one and with two members before many are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from equirelax.relaxation.summary import readable
from equirelax_lab.training.memory import COPIES, machine_bytes
from equirelax_lab.training.stack import StackError
from equirelax_lab.training.stacked_loop import StackedLoop

USABLE = 0.9
"""Share of a device's memory that a stack may fill; the rest allows for memory that the allocator cannot use."""
TRANSIENT = 1.4
"""Memory of a step on the CPU over the memory counted there: 1.2 to 1.45 with SEGNN and its penalties."""


@dataclass(frozen=True)
class StackMemory:
    """Bytes that a training step of a stack takes, `fixed + members * each`.

    Attributes:
        fixed: Bytes that all members share.
        each: Bytes that every member adds.
        available: The device's memory.
    """

    fixed: int
    each: int
    available: float

    @classmethod
    def measured(cls, made: Callable[[int], StackedLoop]) -> StackMemory:
        """Train an epoch with one member and with two, and fit a line through the bytes that they take.

        Args:
            made: Makes a stack of a number of members.
        """
        first, second = made(1), made(2)
        one, two = epoch_bytes(first), epoch_bytes(second)
        each = max(two - one, 1)
        return cls(max(one - each, 0), each, _available(first.loader.device))

    def of(self, members: int) -> int:
        """Bytes that `members` members take."""
        return self.fixed + members * self.each

    @property
    def most(self) -> int:
        """The largest number of members that fits."""
        return max(int((USABLE * self.available - self.fixed) // self.each), 0)

    def check(self, members: int) -> None:
        """Refuse a stack that does not fit.

        Raises:
            StackError: It does not fit; the message says how many members would.
        """
        if members > self.most:
            raise StackError(
                f"a stack of {members} runs takes {readable(self.of(members))}, and this device has "
                f"{readable(int(self.available))}: {self.most} fit. Stack fewer of them, or make batch_size smaller."
            )


def epoch_bytes(loop: StackedLoop) -> int:
    """Bytes that an epoch takes: on a GPU, the peak of the allocated memory; on the CPU, where allocations are not counted, the
    weights in all their copies and the tensors that autograd keeps for a backward pass, times `TRANSIENT`.
    """
    device = loop.loader.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        loop.epoch()
        return torch.cuda.max_memory_allocated(device)
    parameters = list(loop.template.model.parameters())
    own = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}
    steps: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def stepped(taken: int) -> None:
        steps.append(sum(kept.values()))
        kept.clear()

    loop.on_step = stepped
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loop.epoch()
    copies = COPIES + (loop.averages is not None)
    return int(TRANSIENT * (copies * sum(p.numel() * p.element_size() for p in parameters) + max(steps)))


def _available(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else machine_bytes()
