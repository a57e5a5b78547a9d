"""The share of failed runs, which shows how sensitive training is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.rows import SHARED, settings, swept_setting
from equirelax_lab.report.table import headline

Result = Mapping[str, Any]

POOR = 2.0
ALL = "all"
DEFINITION = (
    "A run failed if it ended without a result (its loss diverged, or its process broke again and again), or if its test "
    f"error is more than {POOR:g} times that of the best run of any method of the same network on the same data (where higher "
    f"is better: its score is less than 1/{POOR:g} of the best one). Runs that could not begin, are going on or wait do not "
    "count."
)

Shares = dict[str, dict[Any, tuple[int, int]]]
"""Method (and model) -> `ALL`, and each value of a swept setting -> (failed runs, runs)."""


def poor(results: Sequence[Result]) -> list[bool]:
    """For every result, whether it is much worse than the best of its network on its data; see `DEFINITION`."""
    values = [result["test"][headline(result["method"])] for result in results]
    kinds = [(result["model"], _data_and_network(result)) for result in results]
    found = []
    for result, value, kind in zip(results, values, kinds, strict=True):
        alike = [v for v, k in zip(values, kinds, strict=True) if k == kind and math.isfinite(v)]
        if not math.isfinite(value):
            found.append(True)
        elif result["metric"].get("higher_is_better", False):
            found.append(POOR * value < max(alike))
        else:
            found.append(0 < POOR * min(alike) < value)  # an error of 0 has no multiples
    return found


def _data_and_network(result: Result) -> dict[str, Any]:
    return {key: value for key, value in settings(result).items() if key.partition(".")[0] in SHARED}


def shares(results: Sequence[Result], failed: Sequence[Result]) -> Shares:
    """Count the failed runs.

    Args:
        results: Contents of result.json of one benchmark.
        failed: The runs that ended without a result, as benchmark, model, method, seed and config.
    """
    every = [*results, *failed]
    bad_ones = [*poor(results), *(True for _ in failed)]
    key = swept_setting(every) if every else None
    several = len({run["model"] for run in every}) > 1
    found: Shares = {}
    for run, bad in zip(every, bad_ones, strict=True):
        label = " ".join([run["method"], *([run["model"]] if several else [])])
        places = [ALL, *([settings(run)[key]] if key and key in settings(run) else [])]
        counts = found.setdefault(label, {})
        for place in places:
            before = counts.get(place, (0, 0))
            counts[place] = (before[0] + bad, before[1] + 1)
    return found


def asks_for_failures(results: Sequence[Result], failed: Sequence[Result]) -> bool:
    """Whether a comparison is about how often training fails: a number was swept, or runs ended without a result.

    In other comparisons a method that is far behind is a worse method, not a failed run.
    """
    return bool(failed) or swept_setting(results) is not None


def failures(found: Shares) -> Numbers | None:
    """The share of failed runs, over all and by swept value; None if no run failed."""
    if not any(counts[ALL][0] for counts in found.values()):
        return None
    places = sorted({place for counts in found.values() for place in counts if place != ALL})
    rows = []
    for label, counts in found.items():
        failed, runs = counts[ALL]
        cells = (f"{counts[p][0]} of {counts[p][1]}" if p in counts else "" for p in places)
        rows.append((label, f"{failed} of {runs} ({failed / runs:.0%})", *cells))
    return Numbers(
        "Failed runs", ("method", "failed runs", *(f"at {place:g}" for place in places)), tuple(rows)
    )
