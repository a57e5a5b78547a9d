"""Which runs failed, and their share: how sensitive training is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from equirelax_lab.report.rows import SHARED, settings, swept_setting
from equirelax_lab.report.summary import headline

POOR = 2.0
DEFINITION = (
    "A run failed if it ended without a result (its loss diverged, or its process broke again and again), or if its test "
    f"error is more than {POOR:g} times that of the best run of any method of the same network on the same data (where higher "
    f"is better: its score is less than 1/{POOR:g} of the best one). Runs that could not begin, are going on or wait do not "
    "count."
)
ALL = "all"

Shares = dict[str, dict[Any, tuple[int, int]]]
"""Method (and model) -> `ALL`, and each value of a swept setting -> (failed runs, runs)."""


def poor(results: Sequence[Mapping[str, Any]]) -> list[bool]:
    """For every result whether it is much worse than the best of its network on its data; see `DEFINITION`."""
    values = [result["test"][headline(result["method"])] for result in results]
    kinds = [(result["model"], _data_and_network(result)) for result in results]
    found = []
    for result, value, kind in zip(results, values, kinds, strict=True):
        alike = [v for v, k in zip(values, kinds, strict=True) if k == kind and math.isfinite(v)]
        higher = result["metric"].get("higher_is_better", False)
        if not math.isfinite(value):
            found.append(True)
        elif higher:
            found.append(POOR * value < max(alike))
        else:
            found.append(0 < POOR * min(alike) < value)  # of a perfect run there is no multiple
    return found


def _data_and_network(result: Mapping[str, Any]) -> dict[str, Any]:
    """Their settings by dotted key, those that the run's version lacked at their defaults."""
    return {key: value for key, value in settings(result).items() if key.partition(".")[0] in SHARED}


def shares(results: Sequence[Mapping[str, Any]], lost: Sequence[Mapping[str, Any]]) -> Shares:
    """How many runs failed.

    Args:
        results: Contents of result.json of one benchmark.
        lost: Of runs that ended without a result: benchmark, model, method, seed and config.
    """
    every = [*results, *lost]
    failed = [*poor(results), *(True for _ in lost)]
    key = swept_setting(every) if every else None
    several = len({run["model"] for run in every}) > 1
    found: Shares = {}
    for run, bad in zip(every, failed, strict=True):
        label = " ".join([run["method"], *([run["model"]] if several else [])])
        places = [ALL, *([settings(run)[key]] if key and key in settings(run) else [])]
        counts = found.setdefault(label, {})
        for place in places:
            before = counts.get(place, (0, 0))
            counts[place] = (before[0] + bad, before[1] + 1)
    return found


def asked(results: Sequence[Mapping[str, Any]], lost: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a comparison asks how often training fails: a number was swept, or runs ended without a result.

    Elsewhere a method that is far behind is no failed run, but a worse method.
    """
    return bool(lost) or swept_setting(results) is not None


def any_failed(found: Shares) -> bool:
    """Whether there is a failed run among them."""
    return any(counts[ALL][0] for counts in found.values())


def share_rows(found: Shares) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of a table: the share over all runs, then by swept value."""
    places = sorted({place for counts in found.values() for place in counts if place != ALL})
    head = ("method", "failed runs", *(f"at {place:g}" for place in places))
    rows = []
    for label, counts in found.items():
        failed, runs = counts[ALL]
        cells = (f"{counts[p][0]} of {counts[p][1]}" if p in counts else "" for p in places)
        rows.append((label, f"{failed} of {runs} ({failed / runs:.0%})", *cells))
    return head, rows


def share_table(found: Shares) -> str:
    """Markdown: the table and what it counts; empty where no run failed."""
    if not any_failed(found):
        return ""
    head, rows = share_rows(found)
    lines = ["", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", DEFINITION]) + "\n"
