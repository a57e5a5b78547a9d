"""Attachment of a method to its optimizers, through hooks that run after every step that was not skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

PATIENCE = 100
"""Number of steps of the other optimizers after which one that has never stepped is considered forgotten."""


class Attachment:
    """Calls `advance` when every optimizer has stepped since the last call.

    A step that a `GradScaler` skips does not count. Most optimizers are then not called at all. Fused ones are called with
    `found_inf` set, and change nothing.

    Args:
        optimizers: Distinct optimizers.
        advance: A function that is called within the last optimizer's `step`, after its parameters have moved.

    Attributes:
        lost: Whether this is a copy or was unpickled: optimizers lose their hooks when they are copied.
        ahead: Ids of the parameters of optimizers that have stepped since the last call and wait for the others.
        stuck: Whether the others have stepped `PATIENCE` times and one optimizer never: it was probably forgotten.
    """

    def __init__(self, optimizers: Sequence[Optimizer], advance: Callable[[], None]) -> None:
        self.lost = False
        self.ahead: set[int] = set()
        self._advance = advance
        self._waiting = {id(optimizer) for optimizer in optimizers}
        self._all = frozenset(self._waiting)
        self._never = set(self._waiting)
        self._steps = 0
        self._handles = [optimizer.register_step_post_hook(self._stepped) for optimizer in optimizers]

    def _stepped(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # a GradScaler sets it for the duration of a step
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        self._never.discard(id(optimizer))
        self._steps += 1
        self._waiting.discard(id(optimizer))
        if self._waiting:
            self.ahead.update(id(p) for group in optimizer.param_groups for p in group["params"])
            return
        self._waiting, self.ahead = set(self._all), set()
        self._advance()

    @property
    def stuck(self) -> bool:
        """See the class."""
        return bool(self._never) and self._steps >= PATIENCE

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"lost": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.lost = bool(state["lost"])
        self.ahead, self._never, self._steps = set(), set(), 0
        self._handles = []
