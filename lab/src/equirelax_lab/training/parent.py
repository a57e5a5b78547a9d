"""End runs with the process that started them: without it nobody could stop them, or would notice their end."""

from __future__ import annotations

import os
import signal
import threading
import time

PARENT = "EQUIRELAX_PARENT"
"""Environment variable that holds the number of the process that started a run."""
SECONDS = 1.0


def end_with_this_process() -> dict[str, str]:
    """Environment variables that make a run end when this process ends. The run must lead a process group."""
    return {PARENT: str(os.getpid())}


def follow_parent() -> None:
    """End this process and its group within about a second after the process that `PARENT` names has ended.

    Do nothing if no process is named. As after kill -9, the epochs since the last checkpoint are lost. Only the
    first process of a distributed run watches: it has started the others, with its own environment.
    """
    named = os.environ.get(PARENT, "")
    if not named.isdecimal() or "LOCAL_RANK" in os.environ or os.getpgrp() != os.getpid():
        return
    threading.Thread(target=_follow, args=(int(named),), name="parent", daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS)
    os.killpg(os.getpgrp(), signal.SIGKILL)
