"""How numbers are printed: the same in summary.md, on pages and in what a study says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

UNKNOWN = "n/a"


def decimals(mean: float) -> int:
    """Two, or as many as show three digits of a mean below 1."""
    if mean == 0 or abs(mean) >= 1 or not math.isfinite(mean):
        return 2
    return 2 - math.floor(math.log10(abs(mean)))


def spread_text(value: Mapping[str, Any] | None) -> str:
    """Mean and standard deviation of a `statistics.Spread` as a dict, to the decimals of the mean."""
    if value is None:
        return UNKNOWN
    digits = decimals(value["mean"])
    return f"{value['mean']:.{digits}f}" + ("" if value["std"] is None else f" ± {value['std']:.{digits}f}")


def difference_text(compared: Mapping[str, Any], digits: int) -> str:
    """Mean and deviation of a `statistics.Paired` as a dict, with as many decimals as the value that it is of."""
    text = f"{compared['mean']:+.{digits}f}"
    return text if compared["std"] is None else f"{text} ± {compared['std']:.{digits}f}"


def interval_text(compared: Mapping[str, Any], digits: int, between: str = ", ") -> str:
    """The ends of its 95 % interval; nothing for one seed."""
    if compared["interval"] is None:
        return ""
    low, high = compared["interval"]
    return f"{low:+.{digits}f}{between}{high:+.{digits}f}"
