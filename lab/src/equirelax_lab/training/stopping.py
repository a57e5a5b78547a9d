"""Interrupt a run: the first signal lets it finish its epoch, the second ends it at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask a run to stop: that of Ctrl-C, and the one that schedulers and `kill` send."""


@dataclass
class StopRequest:
    """Whether the run was asked to stop after the present epoch, in a resumable state."""

    made: bool = False


@contextlib.contextmanager
def graceful_interrupt() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a `StopRequest`, and the second into a `KeyboardInterrupt`.

    Outside the main thread, which alone can handle signals, the request is never made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True
        print(
            "\nStopping after this epoch (again: at once, going back to the last checkpoint).",
            file=sys.stderr,
            flush=True,
        )

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
