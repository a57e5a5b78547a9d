"""Means over seeds, and the paired comparison with a baseline that shares them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Two-sided 95 % quantiles of Student's t by degrees of freedom 1..10; beyond, the normal's is within 12 %.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for one value) of `count` values."""

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Paired:
    """Differences to the baseline, seed by seed (negative: a lower value than the baseline's).

    Attributes:
        mean: Mean difference.
        std: Sample standard deviation of the differences; None for one seed.
        interval: 95 % t interval of the mean difference; None for one seed.
        wins: Seeds that do better than the baseline.
        count: Seeds that both have.
    """

    mean: float
    std: float | None
    interval: tuple[float, float] | None
    wins: int
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Plain python."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value."""
    return Spread(
        statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)
    )


def paired(
    values: Mapping[int, float], baseline: Mapping[int, float], higher_is_better: bool = False
) -> Paired | None:
    """Compare two methods over the seeds that both have; None if there are none."""
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = [values[seed] - baseline[seed] for seed in seeds]
    found = spread(differences)
    interval = None
    if found.std is not None:
        quantile = T_QUANTILES[len(seeds) - 2] if len(seeds) - 2 < len(T_QUANTILES) else 1.96
        half = quantile * found.std / math.sqrt(len(seeds))
        interval = (found.mean - half, found.mean + half)
    return Paired(
        found.mean,
        found.std,
        interval,
        sum((d > 0) if higher_is_better else (d < 0) for d in differences),
        len(seeds),
    )
