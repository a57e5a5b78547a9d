"""One sentence on what a comparison shows, which claims no more than the runs do and names what else differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equirelax_lab.report.rows import SHARED, by_label, in_words, shown, strict_rows, training_settings
from equirelax_lab.report.statistics import Paired, paired

EXACT = 1e-9
"""Largest relative equivariance error, in float64, of a network that is called exactly equivariant."""
ENOUGH_SEEDS = 6
"""With fewer seeds no interval is taken to show that a method helps."""

NOTHING = "There is nothing to compare: a strict run and another with the same seed are needed."

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Comparison:
    """A comparison of two rows.

    Attributes:
        name: Label of the row.
        strict: Label of the strict row that it is compared with.
        paired: The differences, seed by seed.
        tried: Settings for which both had the same values to choose from.
    """

    name: str
    strict: str
    paired: Paired
    tried: frozenset[str]


def conclusion(summary: Mapping[str, Any]) -> str:
    """Name the best method beside strict, for the first model that was trained with several methods, and say how sure that is.

    Settings are chosen by validation for every method alike: of several rows of one method on the same data with the same network
    the one with the best validation metric counts, and it is compared with the strict row that has the best one. Whatever else
    differs between the two is named. The sentence says that a method helps only with `ENOUGH_SEEDS` seeds or more, and only if
    no setting but the optimiser differs, or both rows had the same values to choose from.

    Args:
        summary: From `summarise`.
    """
    found = _comparisons(summary)
    if not found:
        return NOTHING
    higher = summary["metric"].get("higher_is_better", False)
    best = (max if higher else min)(found, key=lambda one: one.paired.mean)
    runs = {name: several[0] for name, several in by_label(summary["runs"]).items()}
    differing = _differing(runs[best.name], runs[best.strict])
    words = [f"{in_words(key)} {shown(own)} instead of {shown(its)}" for key, (own, its) in differing.items()]
    reasons = [f"it was trained with {', '.join(words)}"] if words else []
    sentence = _sentence(best, summary, higher)
    if _clear(best.paired) and (best.paired.mean > 0) == higher:
        if best.paired.count < ENOUGH_SEEDS:
            reasons = [f"{best.paired.count} seeds are fewer than {ENOUGH_SEEDS}", *reasons]
        elif not differing.keys() - {"optimizer"} - best.tried:
            return " ".join([sentence, *map(_sentence_of, reasons)])
        return f"{sentence} That it helps is not shown: {', and '.join(reasons)}."
    return " ".join([sentence, *map(_sentence_of, reasons)])


def _sentence(best: _Comparison, summary: Mapping[str, Any], higher: bool) -> str:
    row = summary["methods"][best.name]
    level = summary["methods"][best.strict]["test"]["projected"]["mean"]
    mean, count = best.paired.mean, best.paired.count
    size = f"{abs(mean):.2f} points" if higher else f"{abs(mean) / level:.0%}"
    what = summary["metric"]["name"] if higher else "error"
    kind, state = "best relaxed method here", f" after projection back to {_network(row)}"
    if not row["residuals"]:
        kind, state = "best method here beside strict", ""
    elif row["headline"] == "relaxed":
        state = " keeping its residuals"
    if best.paired.interval is None:
        sure = "from one seed, which is no evidence of a difference"
    elif _clear(best.paired):
        sure = f"with a 95 % interval of the paired difference that excludes zero ({count} seeds)"
    else:
        sure = f"a difference that {count} seeds do not tell from chance"
    side = "below" if mean < 0 else "above"
    return f"The {kind} is {best.name}: its test {what}{state} is {size} {side} {best.strict}, {sure}."


def _comparisons(summary: Mapping[str, Any]) -> list[_Comparison]:
    """For every method of the first model that has several, on each of its data sets, the row with the best validation metric
    beside the strict row with the best one.
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
        name = _preferred(names, rows, higher)
        alike = strict_rows(runs[name][0], runs)
        strict = _preferred(alike, rows, higher) if alike else rows[name]["compared_with"]
        compared = paired(
            {r["seed"]: r["test"][rows[name]["headline"]] for r in runs[name]},
            {r["seed"]: r["test"]["projected"] for r in runs[strict]},
            higher,
        )
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


def _preferred(names: Sequence[str], rows: Mapping[str, Row], higher: bool) -> str:
    """The row with the best mean validation metric."""
    return (max if higher else min)(names, key=lambda name: rows[name]["val"]["mean"])


def _differing(run: Mapping[str, Any], strict: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings in which the training of two runs differs: setting -> (value of the run, value of the strict one)."""
    own, its = training_settings(run), training_settings(strict)
    return {key: (own[key], its[key]) for key in own if key in its and own[key] != its[key]}


def _clear(compared: Paired) -> bool:
    """Whether the interval of the difference excludes zero."""
    return compared.interval is not None and not compared.interval[0] <= 0 <= compared.interval[1]


def _sentence_of(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _network(row: Row) -> str:
    """The kind of network that projection gives; a network that relaxes its own layers (RSteer, RPP) stays what it is."""
    error = row["equivariance_error"]
    exact = error is not None and error["after"] <= EXACT
    return "an exactly equivariant network" if exact else "the network as its author made it"
