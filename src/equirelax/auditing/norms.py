"""Norms and maxima that neither overflow nor underflow, and that propagate NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def norm(x: Tensor) -> float:
    """Frobenius norm of a real or complex tensor, whose entries are divided by the largest before they are squared."""
    size = largest_entry(x)
    if size == 0 or not math.isfinite(size):
        return size
    return size * float((x / size).norm())


def largest_entry(x: Tensor) -> float:
    """``max |x|``, 0 for an empty tensor, and NaN if any entry is NaN."""
    return float(x.abs().max()) if x.numel() else 0.0


def relative_error(found: Tensor, expected: Tensor, scale: float | None = None) -> float:
    """``||a - b|| / max(||a||, ||b||)``, symmetric, at most 2, and 0 if both are 0. ``scale`` replaces the denominator."""
    size = largest((largest_entry(found), largest_entry(expected)))
    if size == 0:
        return 0.0
    a, b = found / size, expected / size  # the entries are at most 1, the largest is 1
    bottom = max(float(a.norm()), float(b.norm())) if scale is None else scale / size
    gap = float((a - b).norm())
    return gap / bottom if bottom > 0 else (0.0 if gap == 0 else math.inf)


def root_of_squares(values: Iterable[float]) -> float:
    """``sqrt(sum v^2)``."""
    return math.hypot(*values)


def largest(values: Iterable[float], default: float = 0.0) -> float:
    """The largest value, or NaN if any is NaN: Python's ``max`` drops or keeps NaN depending on the order."""
    found = list(values)
    if any(math.isnan(value) for value in found):
        return math.nan
    return max(found, default=default)
