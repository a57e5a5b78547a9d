"""The tables of summary.md and of pages, each made once and written as Markdown or HTML."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from equirelax_lab.report.rows import (
    BASELINE,
    SHARED,
    by_label,
    marked_line,
    recipes_line,
    settings,
    strict_rows,
    swept_setting,
)
from equirelax_lab.report.runs import Chapter, Run
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
from equirelax_lab.tasks.registry import base_of, config_from_dict
from equirelax_lab.tasks.task import heading
from equirelax_lab.training.folder import KINDS, differences

Summary = Mapping[str, Any]
Result = Mapping[str, Any]

POOR = 2.0
ALL = "all"
DEFINITION = (
    "A run failed if it ended without a result (its loss diverged, or its process broke again and again), or if its test "
    f"error is more than {POOR:g} times that of the best run of any method of the same network on the same data (where higher "
    f"is better: its score is less than 1/{POOR:g} of the best one). Runs that could not begin, are going on or wait do not "
    "count."
)
RESULTS_NOTE = (
    "The bold number is of the network that the method hands over; folded: layers took over what they can of their "
    "residuals. Difference: to the strict runs with the same seeds and data, with a 95 % t interval; p: two-sided paired t "
    "test of that row alone; Holm: corrected for the number of tests in this table; d: Cohen's d_z, the mean difference in "
    "standard deviations of the differences. With a few seeds p and d are coarse. Published: the papers' own numbers, on "
    "other data and hardware."
)
COST_NOTE = (
    "Seconds per epoch: median over the epochs of a run, mean over seeds; on a machine with other work they say little. "
    "Multiply-adds and the least time of one prediction were recorded after training. Projected networks have as many "
    "parameters as the strict one."
)

Shares = dict[str, dict[Any, tuple[int, int]]]
"""Method (and model) -> `ALL`, and each value of a swept setting -> (failed runs, runs)."""


@dataclass(frozen=True)
class Numbers:
    """A table as text; the first cell of a row names it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Head and rows as Markdown, each line with its end."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summary_text(summary: Summary) -> str:
    """The tables of summary.md: the main one, in what its rows differ, how it was made, then the details."""
    details = [averaged(summary), predictions(summary), strengths(summary)]
    parts = [main(summary).markdown(), marked_line(summary["runs"]) + "\n", _context(summary) + "\n"]
    parts += [table.markdown() for table in details if table is not None]
    return "\n".join(parts) + _spikes(summary)


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
    """The metric of every row, compared with strict by paired tests and effect sizes, beside the published numbers."""
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

    Networks without residuals (Equi-Tuning, Equi-Adapt, REMUL on a plain network) have one state; so have strict ones, but these
    are what the others are projected to.
    """
    relaxes = row["method"] == BASELINE or row["residuals"] > 0
    best = marked.format(spread_text(row["test"][row["headline"]]))
    states = [spread_text(row["test"][state]) if relaxes else "" for state in KINDS]
    return [f"{best} ({row['headline'] if relaxes else 'as trained'})", *states]


def _wins(compared: Mapping[str, Any] | None) -> str:
    return "" if compared is None else f"{compared['wins']} of {compared['count']}"


def averaged(summary: Summary) -> Numbers | None:
    """Test errors of weights averaged over training, compared with strict ones averaged alike; None without."""
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
    """Further metrics on the test set, and the cost of a prediction by the deployed network; None where not recorded."""
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
    """A row for every row with residuals: how large gamma was, and whether multipliers still moved at the end."""
    rows = []
    for name, row in summary["methods"].items():
        if found := row["strengths"]:
            peak, drift = found["max_abs_gamma"], found["multiplier_drift"]
            moved = ("", "") if drift is None else (f"{drift['swing']:.2g}", f"{drift['relative']:.1%}")
            rows.append((name, f"{peak['largest']:.3g}", f"{peak['end']:.3g}", *moved))
    head = ("method", "max abs(gamma) over training", "after the last epoch")
    moving = ("multipliers: range over the last tenth", "of their size")
    title = "Strengths and multipliers: largest over residuals and seeds"
    return Numbers(title, (*head, *moving), tuple(rows)) if rows else None


def _spikes(summary: Summary) -> str:
    """A line for every run whose training loss jumped and stayed up for some epochs; empty where none did."""
    lines = [
        f"- {run['method']} {run['model']} seed {run['seed']}: the training loss rose from {one['before']:.2g} to "
        f"{one['largest']:.2g} (epochs {one['first']:.0f} to {one['last']:.0f})"
        for run in summary["runs"]
        for one in run.get("loss_spikes", ())
    ]
    return "\n" + "\n".join(["Losses that rose a thousandfold:", "", *lines]) + "\n" if lines else ""


def _context(summary: Summary) -> str:
    """How the runs of the main table were made, in a paragraph."""
    hardware, rows = summary["hardware"], by_label(summary["runs"])
    device = hardware["gpu"] or f"{hardware['cpu']}, {hardware['threads']} thread(s) a run"
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
        f"Commit {', '.join(summary['commits'])}; {device}; torch {summary['versions'].get('torch', '?')}."
    )


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
    """A row for every family and level, a column for every method; None where nothing was measured."""
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
    """Mean and deviation; percentages have one decimal, for there are many of them."""
    if metric.get("symbol") == "%":
        return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")
    return spread_text({"mean": mean, "std": deviation})


def _mean(values: Sequence[float]) -> float:
    return spread(values).mean if values else math.nan


# Failed runs: how sensitive training is.


def poor(results: Sequence[Result]) -> list[bool]:
    """For every result whether it is much worse than the best of its network on its data; see `DEFINITION`."""
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
            found.append(0 < POOR * min(alike) < value)  # a perfect run has no multiple
    return found


def _data_and_network(result: Result) -> dict[str, Any]:
    return {key: value for key, value in settings(result).items() if key.partition(".")[0] in SHARED}


def shares(results: Sequence[Result], failed: Sequence[Result]) -> Shares:
    """How many runs failed.

    Args:
        results: Contents of result.json of one benchmark.
        failed: Of runs that ended without a result: benchmark, model, method, seed and config.
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

    Elsewhere a method that is far behind is no failed run, but a worse method.
    """
    return bool(failed) or swept_setting(results) is not None


def failures(found: Shares) -> Numbers | None:
    """The share of failed runs, over all and by swept value; None where no run failed."""
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


# Cost, origin, and every run.


def cost(table: Table) -> Numbers:
    """Time per epoch and parameters, relaxed and projected; arithmetic and time of a prediction."""
    head: tuple[str, ...]
    head = ("method", "parameters (projected)", "in training", "seconds per epoch", "times strict")
    states = [(name, state) for name in ("multiply_adds", "milliseconds") for state in KINDS[:2]]
    words = {"multiply_adds": "million multiply-adds", "milliseconds": "ms"}
    every = [run for runs in table.rows.values() for run in runs]
    alone = len({run.result["model"] for run in every}) == 1
    base = [seconds for run in every if run.result["method"] == BASELINE for seconds in _epoch_seconds(run)]
    rows = []
    for label, runs in table.rows.items():
        own = [seconds for run in runs for seconds in _epoch_seconds(run)]
        parameters = [run.result["parameters"] for run in runs if run.finished][:1]
        cells = [f"{one[kind]:,}" for one in parameters for kind in ("strict", "relaxed")] or ["", ""]
        cells.append(shown(statistics.fmean(own), 3) if own else "")
        cells.append(
            f"{statistics.fmean(own) / statistics.fmean(base):.2f}" if own and base and alone else ""
        )
        for name, state in states:
            least = min(table.values(label, name, state).values(), default=None)
            cells.append(shown(least / 1e6 if name == "multiply_adds" and least else least, 4))
        rows.append((label, *cells))
    head += tuple(f"{words[name]}, {state}" for name, state in states)
    return Numbers("What training and predicting costs", head, tuple(rows))


def _epoch_seconds(run: Run) -> list[float]:
    """The median time of an epoch; of a run without metrics the mean, from the whole time."""
    clock = [0.0, *(float(row["seconds"]) for row in run.rows if row.get("seconds"))]
    steps = [after - before for before, after in pairwise(clock) if after > before]
    if steps:
        return [statistics.median(steps)]
    return [run.result["seconds"] / run.result["epochs"]] if run.finished and run.result["epochs"] else []


def origin(chapter: Chapter, summary: Summary | None) -> Numbers:
    """Benchmark, models, code and machine; everything that differed between the runs is listed."""
    done = [run.result for run in chapter.finished]
    rows = [
        ("benchmark", chapter.runs[0].result["benchmark"]),
        ("models", ", ".join(chapter.models)),
        ("metric", heading(chapter.metric)),
        ("runs", f"{len(done)} finished, {len(chapter.runs) - len(done)} not"),
    ]
    if summary is not None:
        versions = (", ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in done)
        rows += [
            ("recipes", recipes_line(done).partition(": ")[2].rstrip(".")),
            ("scaled down", summary["scaled_down"] or "no: the papers' size"),
            ("commits", ", ".join(summary["commits"])),
            ("machine", "; ".join(dict.fromkeys(_machine(result["hardware"]) for result in done))),
            ("versions", "; ".join(dict.fromkeys(versions))),
        ]
    return Numbers("Origin", ("what", "value"), tuple(rows))


def _machine(hardware: Mapping[str, Any]) -> str:
    device = f", {hardware['gpu']}" if hardware.get("gpu") else ""
    return f"{hardware['cpu']}{device}, {hardware['cores']} cores, {hardware['threads']} thread(s) a run"


def changed(chapter: Chapter) -> Numbers:
    """For every row the settings that are not the papers'."""
    rows = []
    for label, runs in chapter.by_label().items():
        config = config_from_dict({**runs[0].result["config"], "seed": 0})
        found = differences(base_of(config).to_dict(), config.to_dict())
        words = (one.replace(" was ", ": ").replace(" and is now ", " → ") for one in found)
        rows.append((label, "; ".join(words) or "none"))
    return Numbers("Settings that are not the papers'", ("method", "papers' value → value here"), tuple(rows))


def runs(chapter: Chapter) -> Numbers:
    """A row for every run: how far it came, and what it gave."""
    rows = []
    for label, run in zip(chapter.labels, chapter.runs, strict=True):
        result = run.result
        epochs = result["epochs"] if run.finished else int(run.rows[-1]["epoch"]) + 1 if run.rows else 0
        test = result["test"] if run.finished else {}
        rows.append(
            (
                run.name,
                label,
                str(result["seed"]),
                run.status,
                str(epochs),
                str(result.get("selected_epoch", "")),
                shown(result["val"][headline(result["method"])]) if run.finished else "",
                *(shown(test.get(state)) for state in KINDS[:2]),
                shown(result.get("seconds"), 4),
                str(result.get("commit", ""))[:10],
            )
        )
    head = ("run", "method", "seed", "state", "epochs", "selected epoch", "validation")
    more = ("test, relaxed", "test, projected", "seconds", "commit")
    return Numbers("Every run", head + more, tuple(rows))
