"""The tables of results, each made once for summary.md, pages and files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.rows import BASELINE, by_label, marked_line, recipes_line, strict_rows
from equirelax_lab.report.statistics import (
    decimals,
    difference_text,
    holm,
    interval_text,
    shown,
    spread,
    spread_text,
)
from equirelax_lab.report.table import Table, condition, headline
from equirelax_lab.tasks.task import heading
from equirelax_lab.training.folder import KINDS

Summary = Mapping[str, Any]

RESULTS_NOTE = (
    "The bold number is of the network that the method hands over; folded: layers took over what they can of their "
    "residuals. Difference: to the strict runs with the same seeds and data, with a 95 % t interval; p: two-sided paired t "
    "test of that row alone; Holm: corrected for the number of tests in this table; d: Cohen's d_z, the mean difference in "
    "standard deviations of the differences. With a few seeds p and d are coarse. Published: the papers' own numbers, on "
    "other data and hardware."
)


def summary_text(summary: Summary) -> str:
    """The tables of summary.md: the main one, how its rows differ, how it was made, then the details."""
    parts = [main(summary).markdown(), marked_line(summary["runs"]) + "\n", _context(summary) + "\n"]
    return (
        "\n".join([*parts, *(table.markdown() for table in details(summary))])
        + _spikes(summary)
        + _lags(summary)
    )


def details(summary: Summary) -> list[Numbers]:
    """The tables below the main one."""
    found = (averaged(summary), predictions(summary), strengths(summary))
    return [table for table in found if table is not None]


def main(summary: Summary) -> Numbers:
    """The metric of every row, compared with strict; parameters, equivariance error and time."""
    head = ("method", f"test {heading(summary['metric'])}", *KINDS, "minus strict (paired)", "better seeds")
    more = ("published", "parameters (training)", "equivariance error, relaxed → projected", "seconds")
    rows = []
    for name, row in summary["methods"].items():
        errors, parameters, compared = row["equivariance_error"], row["parameters"], row["paired_with_strict"]
        digits = decimals(row["test"][row["headline"]]["mean"])
        interval = interval_text(compared, digits)
        rows.append(
            (
                name,
                *_tested(row, "**{}**"),
                difference_text(compared, digits) + (f" [{interval}]" if interval else ""),
                _wins(compared),
                row["published"] or "",
                f"{parameters['strict']:,} ({parameters['relaxed']:,})",
                "n/a" if errors is None else f"{errors['before']:.1e} → {errors['after']:.1e}",
                f"{row['seconds']['mean']:.0f}",
            )
        )
    return Numbers("Results", head + more, tuple(rows))


def tests(summary: Summary) -> Numbers:
    """The metric of every row, compared with strict by paired tests and effect sizes, and the published numbers."""
    head = ("method", f"test {heading(summary['metric'])}", *KINDS, "minus strict", "95 % interval")
    more = ("p", "p (Holm)", "d", "better seeds", "published")
    rows = summary["methods"]
    compared = {name: row["paired_with_strict"] for name, row in rows.items()}
    corrected = holm({name: one["p"] for name, one in compared.items() if one and one["p"] is not None})
    found = []
    for name, row in rows.items():
        one, digits = compared[name], decimals(row["test"][row["headline"]]["mean"])
        p, effect = (None, None) if one is None else (one["p"], one["effect"])
        found.append(
            (
                name,
                *_tested(row, "{}"),
                difference_text(one, digits),
                interval_text(one, digits, " to "),
                shown(p, 2),
                shown(corrected.get(name), 2),
                "" if effect is None else f"{effect:+.2f}",
                _wins(one),
                row["published"] or "",
            )
        )
    return Numbers("Test metric: mean ± standard deviation over seeds", head + more, tuple(found))


def _tested(row: Mapping[str, Any], marked: str) -> list[str]:
    """The headline number with its state, then the number of every state.

    Networks without residuals (Equi-Tuning, Equi-Adapt, REMUL on a plain network) have one state. So do strict ones, but theirs
    is the state to which the others are projected.
    """
    relaxes = row["method"] == BASELINE or row["residuals"] > 0
    best = marked.format(spread_text(row["test"][row["headline"]]))
    states = [spread_text(row["test"][state]) if relaxes else "" for state in KINDS]
    return [f"{best} ({row['headline'] if relaxes else 'as trained'})", *states]


def _wins(compared: Mapping[str, Any] | None) -> str:
    return "" if compared is None else f"{compared['wins']} of {compared['count']}"


def averaged(summary: Summary) -> Numbers | None:
    """Test errors of weights averaged over training, compared with strict ones averaged the same way; None without any."""
    head = ("averaged weights", "decay", f"test {heading(summary['metric'])}", *KINDS[:2])
    more = ("minus strict, averaged (paired)", "better seeds")
    rows = []
    for name, row in summary["methods"].items():
        if found := row["averaged"]:
            compared, best = found["paired_with_strict"], found["test"][row["headline"]]
            digits = decimals(best["mean"])
            interval = interval_text(compared, digits)
            rows.append(
                (
                    name,
                    ", ".join(f"{decay:g}" for decay in found["decays"]),
                    f"**{spread_text(best)}** ({row['headline']})",
                    *(spread_text(found["test"][state]) for state in KINDS[:2]),
                    difference_text(compared, digits) + (f" [{interval}]" if interval else ""),
                    _wins(compared),
                )
            )
    return Numbers("Averaged weights", head + more, tuple(rows)) if rows else None


def predictions(summary: Summary) -> Numbers | None:
    """Further metrics on the test set, and the cost of a prediction by the deployed network; None if not recorded."""
    methods = {name: row for name, row in summary["methods"].items() if row["inference"]}
    if not methods:
        return None
    further = list(dict.fromkeys(key for row in methods.values() for key in row["further"]))
    states = KINDS[:2] if any(row["residuals"] for row in methods.values()) else KINDS[1:2]
    pairs = [(key, state) for key in further for state in states]
    named = (f"test {key}" + (f", {state}" if len(states) > 1 else "") for key, state in pairs)
    rows = tuple(
        (
            name,
            *(spread_text(row["further"].get(key, {}).get(state)) for key, state in pairs),
            f"{row['inference']['multiply_adds'] / 1e6:.4g}",
            f"{row['inference']['milliseconds']:.3g}",
        )
        for name, row in methods.items()
    )
    head = ("method", *named, "million multiply-adds a prediction", "ms (least)")
    return Numbers("Further metrics, and what a prediction costs", head, rows)


def strengths(summary: Summary) -> Numbers | None:
    """A row for every row with residuals: how large gamma was, whether multipliers still changed at the end, and when the
    projected network first lagged.
    """
    rows = []
    lags = any((row["strengths"] or {}).get("lag") for row in summary["methods"].values())
    for name, row in summary["methods"].items():
        if found := row["strengths"]:
            peak, drift = found["max_abs_gamma"], found["multiplier_drift"]
            moved = ("", "") if drift is None else (f"{drift['swing']:.2g}", f"{drift['relative']:.1%}")
            lag = ", ".join(str(epoch or "never") for epoch in found["lag"])
            rows.append(
                (name, f"{peak['largest']:.3g}", f"{peak['end']:.3g}", *moved, *([lag] if lags else []))
            )
    head = ("method", "max abs(gamma) over training", "after the last epoch")
    moving = ("multipliers: range over the last tenth", "of their size")
    more = ("epoch from which the projected network lags, seed by seed",) if lags else ()
    title = "Strengths and multipliers: largest over residuals and seeds"
    return Numbers(title, (*head, *moving, *more), tuple(rows)) if rows else None


def _spikes(summary: Summary) -> str:
    """A line for every run whose training loss jumped and stayed up for some epochs; empty if none did."""
    lines = [
        f"- {run['method']} {run['model']} seed {run['seed']}: the training loss rose from {one['before']:.2g} to "
        f"{one['largest']:.2g} (epochs {one['first']:.0f} to {one['last']:.0f})"
        for run in summary["runs"]
        for one in run.get("loss_spikes", ())
    ]
    return "\n" + "\n".join(["Losses that rose a thousandfold:", "", *lines]) + "\n" if lines else ""


def _lags(summary: Summary) -> str:
    """A line for every run whose projected network fell behind on training data; empty if none did."""
    lines = [
        f"- {run['method']} {run['model']} seed {run['seed']}: from epoch {run['lag']} on"
        for run in summary["runs"]
        if run.get("lag")
    ]
    title = "Projected networks whose loss on training data lags behind the relaxed one's (`equirelax.methods.lags`):"
    return "\n" + "\n".join([title, "", *lines]) + "\n" if lines else ""


def _context(summary: Summary) -> str:
    """A paragraph on how the runs of the main table were made."""
    rows = by_label(summary["runs"])
    several = any(len(strict_rows(run, rows)) > 1 for run, *_ in rows.values())
    against = (
        ", seed by seed, to the strict row that shares the most settings"
        if several
        else " to strict seed by seed"
    )
    scale = f" Smaller than the papers' setting: {summary['scaled_down']}." if summary["scaled_down"] else ""
    return (
        f"{summary['benchmark']}, {summary['model']}; mean ± standard deviation over seeds; paired: "
        f"difference{against}, with a 95 % t interval. Published: the papers' own numbers, on "
        f"other data and hardware.{scale} {recipes_line(summary['runs'])} "
        f"Commit {', '.join(summary['commits'])}; {_machines(summary['runs'])}."
    )


def _machines(runs: Sequence[Mapping[str, Any]]) -> str:
    """The hardware and software of the runs: "AMD EPYC, 1 or 2 thread(s) a run; torch 2.13.0"."""
    devices = dict.fromkeys(run["hardware"]["gpu"] or run["hardware"]["cpu"] for run in runs)
    threads = sorted({run["hardware"]["threads"] for run in runs if not run["hardware"]["gpu"]})
    versions = dict.fromkeys(str(run["versions"].get("torch", "?")) for run in runs)
    a_run = f", {' or '.join(map(str, threads))} thread(s) a run" if threads else ""
    return f"{', '.join(devices)}{a_run}; torch {', '.join(versions)}"


# Further conditions: dropped points, corruptions.

Levels = dict[str, dict[str, dict[float, tuple[float, float]]]]
"""Family of conditions -> row -> level -> (mean, standard deviation over seeds)."""


def levels(table: Table) -> Levels:
    """The deployed networks' metric under further conditions."""
    found: Levels = {}
    for name in table.names("condition "):
        family, level = condition(name.removeprefix("condition "))
        for row, runs in table.rows.items():
            if values := table.values(row, name, headline(runs[0].result["method"])):
                one = spread(list(values.values()))
                found.setdefault(family, {}).setdefault(row, {})[level] = (one.mean, one.std or 0.0)
    return found


def conditions(found: Levels, metric: Mapping[str, Any]) -> Numbers | None:
    """A row for every family and level, a column for every method; None if nothing was measured."""
    if not found:
        return None
    names = list(dict.fromkeys(row for family in found.values() for row in family))
    rows = []
    for family, by_row in found.items():
        for level in sorted({level for own in by_row.values() for level in own}):
            cells = (cell(*by_row[n][level], metric) if level in by_row.get(n, {}) else "" for n in names)
            rows.append((f"{family} {level:g}", *cells))
    if len(found) > 1:
        means = (_mean([v for f in found.values() for v, _ in f.get(n, {}).values()]) for n in names)
        rows.append(("mean of all", *(cell(mean, None, metric) for mean in means)))
    title = f"Test {heading(metric)} of the deployed model, mean ± standard deviation over seeds."
    return Numbers(title, ("condition", *names), tuple(rows))


def cell(mean: float, deviation: float | None, metric: Mapping[str, Any]) -> str:
    """Mean and deviation; percentages have one decimal, since there are many of them."""
    if metric.get("symbol") == "%":
        return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")
    return spread_text({"mean": mean, "std": deviation})


def _mean(values: Sequence[float]) -> float:
    return spread(values).mean if values else math.nan
