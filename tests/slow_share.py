"""Which tests are slow besides those marked so, and which of the slow ones run today: a share that rotates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

LIST = Path(__file__).parent / "slow_tests.txt"


def listed_as_slow() -> frozenset[str]:
    """The names in slow_tests.txt, as pytest writes them, below tests/ or lab/tests/."""
    lines = LIST.read_text("utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def share(names: Sequence[str], text: str) -> set[str]:
    """Every N-th of `names`, sorted, from the K-th on, for `text` "K/N"; K counts round, as commits do.

    Raises:
        ValueError: `text` is not K/N with N of 1 or more.
    """
    found = re.fullmatch(r"(\d+)/([1-9]\d*)", text)
    if found is None:
        raise ValueError(f"--slow-share is {text!r}; expected K/N, two whole numbers, N 1 or more")
    first, step = int(found[1]), int(found[2])
    return set(sorted(names)[first % step :: step])
