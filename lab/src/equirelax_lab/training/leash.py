"""A run that another process started does not outlive it: nobody would read its end, or stop it."""

from __future__ import annotations

import os
import signal
import threading
import time

PARENT = "EQUIRELAX_PARENT"
"""Environment variable that names the process number of the starter."""
SECONDS = 1.0


def leash() -> dict[str, str]:
    """What makes a run end with this process when it is put into its environment. It must lead a process group."""
    return {PARENT: str(os.getpid())}


def follow_parent() -> None:
    """Where a starter is named, end this process and its group at once when the starter has ended.

    At most about a second passes. What is lost is what kill -9 loses: the epochs since the last checkpoint. The processes of
    a distributed run but the first were started by the first, so nothing is watched in them.
    """
    named = os.environ.get(PARENT, "")
    # the first of a distributed run starts the others with its own environment
    if not named.isdecimal() or "LOCAL_RANK" in os.environ or os.getpgrp() != os.getpid():
        return
    threading.Thread(target=_follow, args=(int(named),), name="leash", daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS)
    os.killpg(os.getpgrp(), signal.SIGKILL)
