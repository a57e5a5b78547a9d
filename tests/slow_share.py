"""Which of the slow tests run today: a share of them that rotates, so that all are run every few changes."""

from __future__ import annotations

import re
from collections.abc import Sequence


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
