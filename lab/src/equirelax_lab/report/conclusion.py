"""State what a comparison shows, in sentences that claim no more than the runs support and name what else differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equirelax_lab.report.rows import (
    SHARED,
    by_label,
    in_words,
    settings,
    shown,
    strict_rows,
    training_settings,
)
from equirelax_lab.report.statistics import Paired, holm, paired, spread
from equirelax_lab.report.table import headline
from equirelax_lab.report.weights import by_validation, worst_last

EXACT = 1e-9
"""Largest relative equivariance error, in float64, of a network that is called exactly equivariant."""
ENOUGH_SEEDS = 6
"""With fewer seeds no interval counts as evidence."""
LEVEL = 0.02
"""A method is called level with strict if its interval lies within this share of strict's mean."""
ALPHA = 0.05
"""A difference counts if the p of its test, corrected for the number of comparisons, is below this."""

NOTHING = "There is nothing to compare: a strict run and another with the same seed are needed."

Row = Mapping[str, Any]
Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""Label of a row -> its results."""


@dataclass(frozen=True)
class _Comparison:
    """A comparison of two rows.

    Attributes:
        name: Label of the row.
        strict: Label of the strict row that it is compared with.
        paired: The differences, seed by seed.
        tried: Settings of which both had the same values to choose from.
    """

    name: str
    strict: str
    paired: Paired
    tried: frozenset[str]


def conclusion(summary: Mapping[str, Any], failed: Sequence[Mapping[str, Any]] = ()) -> str:
    """Name the best method other than strict, for the first model that was trained with several methods, and how certain it is.

    Methods and settings are chosen by validation. Where averages of the weights were kept, the raw or the averaged ones count in
    every run, whichever validation prefers. Among rows of one method on the same data with the same network, the one with
    the best validation metric counts, and it is compared with the strict row that has the best one. The method that is furthest
    ahead of strict in validation is named, and so is everything else in which the two rows differ. The sentences call a method

    - level with strict if the whole 95 % interval of the paired difference lies within `LEVEL` of strict's mean,
    - otherwise better or worse than strict if the interval excludes zero, and p is below `ALPHA` after Holm's correction for
      the number of comparisons,
    - undecided otherwise, and always with fewer than `ENOUGH_SEEDS` seeds, if runs of one of the two failed, or if a setting
      other than the optimiser differs and the two rows did not have the same values to choose from.

    Args:
        summary: From `summarise`.
        failed: What is known of runs that ended without a result, with their settings.
    """
    found = _comparisons(summary)
    if not found:
        return NOTHING
    higher = summary["metric"].get("higher_is_better", False)
    every = by_label(summary["runs"])
    best = min(found, key=lambda one: _ahead(one, every, higher))
    runs = {name: several[0] for name, several in every.items()}
    differing = differing_settings(runs[best.name], runs[best.strict])
    row, level = summary["methods"][best.name], _mean(every[best.strict], "test")
    kind = "relaxed method here" if row["residuals"] else "method here beside strict"
    reasons = _doubts(best.paired)
    lost = sum(settings(one) in (settings(runs[best.name]), settings(runs[best.strict])) for one in failed)
    if lost:
        reasons.append(f"{lost} more of their runs failed")
    if differing.keys() - {"optimizer"} - best.tried:
        reasons.append("the two differ in more than the method")
    verdict = "undecided" if reasons else _verdict(best.paired, level, higher)
    corrected = holm({one.name: 1.0 if one.paired.p is None else one.paired.p for one in found})
    if verdict in ("better", "worse") and best.paired.p is not None and corrected[best.name] >= ALPHA:
        verdict = "undecided"
        reasons.append(f"it is one of {len(found)} comparisons (Holm's p is {corrected[best.name]:.2g})")
    against = {"undecided": "against", "level": "with"}.get(verdict, "than")
    parts = [
        f"The best {kind}, by validation, is {best.name}: {verdict} {against} {best.strict}{_because(reasons)}.",
        f"{_state(row, summary['metric']['name'] if higher else 'error')} is {_difference(best, level, higher)}.",
    ]
    if any(run.get("averaged") for run in every[best.name] + every[best.strict]):
        parts.append("In every run the raw or the averaged weights count, whichever validation prefers.")
    if differing:
        words = [
            f"{in_words(key)} {shown(own)} instead of {shown(its)}" for key, (own, its) in differing.items()
        ]
        parts.append(f"It was trained with {', '.join(words)}.")
    return " ".join(parts)


def _doubts(compared: Paired) -> list[str]:
    """Why a difference is inconclusive, whatever its size."""
    if compared.count < ENOUGH_SEEDS:
        seeds = "one seed is" if compared.count == 1 else f"{compared.count} seeds are"
        return [f"{seeds} fewer than {ENOUGH_SEEDS}"]
    return []


def _verdict(compared: Paired, level: float, higher: bool) -> str:
    low, high = compared.interval or (-math.inf, math.inf)
    if max(abs(low), abs(high)) <= LEVEL * abs(level):
        return "level"
    if low <= 0 <= high:
        return "undecided"
    return "better" if (compared.mean > 0) == higher else "worse"


def _because(reasons: Sequence[str]) -> str:
    return f", because {' and '.join(reasons)}" if reasons else ""


def _state(row: Row, what: str) -> str:
    """The beginning of a sentence about a row's test metric, which names the state of the network."""
    if not row["residuals"]:
        return f"Its test {what}"
    if row["headline"] == "relaxed":
        return f"Its test {what}, keeping its residuals,"
    return f"Its test {what}, after projection back to {_network(row)},"


def _difference(best: _Comparison, level: float, higher: bool) -> str:
    """A difference and its interval in words: percent of the strict mean, or points if higher is better."""
    compared = best.paired
    if not higher and not level:
        return f"{compared.mean:+.3g} from that of {best.strict}"

    def size(value: float) -> str:
        return f"{value:.2f}" if higher else f"{100 * value / abs(level):.{_digits(value / level)}f}"

    unit = "points" if higher else "%"
    side = "the same as"
    if compared.mean:
        side = f"{size(abs(compared.mean))} {unit} {'below' if compared.mean < 0 else 'above'}"
    seeds = "one seed" if compared.count == 1 else f"{compared.count} seeds"
    if compared.interval is None:
        return f"{side} that of {best.strict} ({seeds})"
    low, high = (("+" if end > 0 else "") + size(end) for end in compared.interval)
    return f"{side} that of {best.strict} (95 % interval {low} to {high} {unit}, {seeds})"


def _digits(share: float) -> int:
    """Decimals of a percentage: two digits for small ones."""
    return 0 if abs(share) >= 0.1 else 1 if abs(share) >= 0.01 or not share else 2


def _comparisons(summary: Mapping[str, Any]) -> list[_Comparison]:
    """For every method of the first model that has several, on each of its data sets: the row with the best validation metric,
    compared with the strict row with the best one.
    """
    rows, runs = summary["methods"], by_label(summary["runs"])
    higher = summary["metric"].get("higher_is_better", False)
    model = next((row["model"] for row in rows.values() if row["paired_with_strict"]), None)
    candidates: dict[str, list[str]] = {}
    for name, row in rows.items():
        if row["model"] == model and row["paired_with_strict"]:
            where = repr([row["method"], *(runs[name][0]["config"].get(section) for section in SHARED)])
            candidates.setdefault(where, []).append(name)
    found = []
    for names in candidates.values():
        name = _preferred(names, runs, higher)
        alike = strict_rows(runs[name][0], runs)
        strict = _preferred(alike, runs, higher) if alike else rows[name]["compared_with"]
        compared = paired(_errors(runs[name], "test"), _errors(runs[strict], "test"), higher)
        if compared is not None:
            both = _tried([runs[each][0] for each in names]), _tried([runs[each][0] for each in alike])
            tried = {key for key, values in both[0].items() if len(values) > 1 and both[1].get(key) == values}
            found.append(_Comparison(name, strict, compared, frozenset(tried)))
    return found


def _tried(runs: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Setting -> the values that `runs` have for it."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for key, value in training_settings(run).items():
            found.setdefault(key, set()).add(repr(value))
    return found


def _errors(runs: Sequence[Mapping[str, Any]], part: str) -> dict[int, float]:
    """Seed -> "val" or "test" metric, of the weights that validation prefers, in the form that the method deploys."""
    form = headline(runs[0]["method"])
    return {run["seed"]: by_validation(run, form)[part][form] for run in runs}


def _mean(runs: Sequence[Mapping[str, Any]], part: str) -> float:
    return spread(list(_errors(runs, part).values())).mean


def _preferred(names: Sequence[str], runs: Runs, higher: bool) -> str:
    """The row with the best mean validation metric."""
    return min(names, key=lambda name: _rank(runs[name], higher))


def _ahead(one: _Comparison, runs: Runs, higher: bool) -> float:
    """How far the row is from its strict row in validation; lower is better. It is in points if higher values are better, else
    a share of strict's error, since rows may be of several data sets.
    """
    own, its = _rank(runs[one.name], higher), _rank(runs[one.strict], higher)
    if math.isinf(own) or math.isinf(its):
        return math.inf
    return own - its if higher or not its else (own - its) / abs(its)


def _rank(runs: Sequence[Mapping[str, Any]], higher: bool) -> float:
    """The mean validation metric as a number for which lower is better; NaN is the worst."""
    return worst_last((-1 if higher else 1) * _mean(runs, "val"))


def differing_settings(run: Mapping[str, Any], strict: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings in which the training of two runs differs: setting -> (value of the run, value of the strict one)."""
    own, its = training_settings(run), training_settings(strict)
    return {key: (own[key], its[key]) for key in own if key in its and own[key] != its[key]}


def _network(row: Row) -> str:
    """The kind of network after projection; a network that relaxes its own layers (RSteer, RPP) is not changed by it."""
    error = row["equivariance_error"]
    exact = error is not None and error["after"] <= EXACT
    return "an exactly equivariant network" if exact else "the network as its author made it"
