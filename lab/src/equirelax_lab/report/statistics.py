"""Means over seeds, the paired comparison with strict runs of the same seeds, and the formatting of such numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

UNKNOWN = "n/a"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for one value) of `count` values."""

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Paired:
    """Differences to a baseline, seed by seed; negative if the value is lower than the baseline's.

    Attributes:
        mean: Mean difference.
        std: Sample standard deviation of the differences; None for one seed.
        interval: 95 % interval of the mean difference by Student's t; all numbers if a difference is not finite; None for
            one seed.
        wins: Number of seeds that do better than the baseline.
        count: Number of seeds that both have.
        p: p value of the two-sided paired t test, not corrected for other comparisons; None for one seed, or without any spread.
        effect: Cohen's d_z, the mean difference over the standard deviation of the differences; None if `p` is.
    """

    mean: float
    std: float | None
    interval: tuple[float, float] | None
    wins: int
    count: int
    p: float | None = None
    effect: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value; the deviation is NaN if not all values are finite."""
    std = None
    if len(values) > 1:
        std = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    return Spread(statistics.fmean(values), std, len(values))


def paired(
    values: Mapping[int, float], baseline: Mapping[int, float], higher_is_better: bool = False
) -> Paired | None:
    """Compare two rows over the seeds that both have; None if there are none.

    Args:
        values: Seed -> value.
        baseline: The same for the row to compare with.
        higher_is_better: Whether a larger value wins.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = [values[seed] - baseline[seed] for seed in seeds]
    found, count = spread(differences), len(seeds)
    interval = p = effect = None
    if found.std is not None:
        from scipy import special  # type: ignore[import-untyped]  # takes a while to import, and no help text needs it

        half = float(special.stdtrit(count - 1, 0.975)) * found.std / math.sqrt(count)
        finite = math.isfinite(half)
        interval = (found.mean - half, found.mean + half) if finite else (-math.inf, math.inf)
        if found.std and finite:
            effect = found.mean / found.std
            p = 2 * float(special.stdtr(count - 1, -abs(effect) * math.sqrt(count)))
    wins = sum((d > 0) if higher_is_better else (d < 0) for d in differences)
    return Paired(found.mean, found.std, interval, wins, count, p, effect)


def holm(found: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: name -> p times the number of tests that are not yet decided, at most 1.

    If differences are called real where the corrected p is below 0.05, at most five in a hundred such tables have a wrong row.
    """
    corrected, largest = {}, 0.0
    for done, name in enumerate(sorted(found, key=lambda name: found[name])):
        largest = max(largest, min((len(found) - done) * found[name], 1.0))
        corrected[name] = largest
    return corrected


def decimals(mean: float) -> int:
    """Number of decimals: two, or as many as show three digits of a mean below 1."""
    if mean == 0 or abs(mean) >= 1 or not math.isfinite(mean):
        return 2
    return 2 - math.floor(math.log10(abs(mean)))


def spread_text(value: Mapping[str, Any] | None) -> str:
    """Mean and standard deviation of a `Spread` as a dict, to the decimals of the mean."""
    if value is None:
        return UNKNOWN
    digits = decimals(value["mean"])
    return f"{value['mean']:.{digits}f}" + ("" if value["std"] is None else f" ± {value['std']:.{digits}f}")


def difference_text(compared: Mapping[str, Any] | None, digits: int) -> str:
    """Mean and deviation of a `Paired` as a dict, with as many decimals as the value itself; empty for None."""
    if compared is None:
        return ""
    text = f"{compared['mean']:+.{digits}f}"
    return text if compared["std"] is None else f"{text} ± {compared['std']:.{digits}f}"


def interval_text(compared: Mapping[str, Any] | None, digits: int, between: str = ", ") -> str:
    """The ends of its 95 % interval; empty for one seed and for None."""
    if compared is None or compared["interval"] is None:
        return ""
    low, high = compared["interval"]
    return f"{low:+.{digits}f}{between}{high:+.{digits}f}"


def shown(value: float | None, digits: int = 4) -> str:
    """A number in a table; empty for None and for non-finite numbers."""
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"
