"""Figures of what came out: the test metric by seed, the equivariance error, sweeps, further conditions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from equirelax_lab.report import conditions, failures, swept
from equirelax_lab.report.figures import (
    SYMBOLS,
    Figure,
    Numbers,
    Trace,
    axis,
    colour,
    dash,
    legend_height,
    plain,
    rounded,
    scaled,
    shown,
)
from equirelax_lab.report.rounding import spread_text
from equirelax_lab.report.rows import Curves, swept_curves, swept_setting
from equirelax_lab.report.runs import Chapter, Run
from equirelax_lab.report.statistics import spread
from equirelax_lab.report.summary import headline
from equirelax_lab.tasks.methods import is_learnt
from equirelax_lab.tasks.task import heading


def by_seed(chapter: Chapter, summary: Mapping[str, Any]) -> Figure:
    """The deployed networks' test metric, a point for every seed, their mean, and the published value."""
    methods = summary["methods"]
    points: list[tuple[str, float, int]] = []
    for label, run in zip(chapter.labels, chapter.runs, strict=True):
        if run.finished:
            points.append((label, run.result["test"][headline(run.result["method"])], run.result["seed"]))
    published = {name: value for name, row in methods.items() if (value := leading_number(row["published"]))}
    traces: list[Trace] = [
        _markers("each seed", [p[0] for p in points], [p[1] for p in points], "circle-open", 2, 9)
        | {
            "customdata": [seed for _, _, seed in points],
            "hovertemplate": "%{y}, seed %{customdata}: %{x}<extra></extra>",
        },
        _markers(
            "mean",
            list(methods),
            [row["test"][row["headline"]]["mean"] for row in methods.values()],
            "line-ns-open",
            0,
            22,
        ),
    ]
    if published:
        traces.append(_markers("published", list(published), list(published.values()), "diamond", 5, 9))
    rows = tuple(
        (
            name,
            ", ".join(shown(value) for label, value, _ in points if label == name),
            spread_text(row["test"][row["headline"]]),
            row["published"] or "",
        )
        for name, row in methods.items()
    )
    return Figure(
        f"Test {heading(summary['metric'])}",
        "The networks that the methods hand over (projected; with their residuals for methods that keep them). "
        "Published values: the papers' own, on other data and hardware.",
        tuple(traces),
        {"xaxis": axis(heading(summary["metric"])), "yaxis": _names(list(methods))},
        Numbers(("method", "seeds", "mean and deviation", "published"), rows),
        150 + 34 * len(methods),
    )


def equivariance(summary: Mapping[str, Any]) -> Figure | None:
    """The relative equivariance error of the selected networks, as trained and after projection; None where unknown."""
    errors = {name: row["equivariance_error"] for name, row in summary["methods"].items()}
    known = {name: error for name, error in errors.items() if error is not None}
    if not known:
        return None
    traces = [
        _markers(words, list(known), [error[key] or None for error in known.values()], symbol, index, 11)
        for words, key, symbol, index in (
            ("as trained", "before", "circle", 5),
            ("projected", "after", "square", 2),
        )
    ]
    first = next(iter(known.values()))
    return Figure(
        "Equivariance error of the selected networks",
        f"Largest relative error over random elements of {first['group']} and over seeds, in {first['dtype']}, of the weights "
        "that validation selected. An exactly equivariant network is at rounding, near 1e-16 to 1e-15 in float64; an error "
        "of exactly zero has no place on a logarithmic axis and is in the table alone.",
        tuple(traces),
        {"xaxis": axis("relative error", "log", exponentformat="power"), "yaxis": _names(list(known))},
        Numbers(
            ("method", "as trained", "projected"),
            tuple((name, f"{e['before']:.1e}", f"{e['after']:.1e}") for name, e in known.items()),
        ),
        150 + 34 * len(known),
    )


def sweeps(chapter: Chapter) -> list[Figure]:
    """Where one number was swept: the deployed networks' metric against it, and how large strengths and multipliers ended."""
    runs = chapter.finished
    results = [run.result for run in runs]
    key = swept_setting(results)
    if key is None:
        return []
    name = swept.in_words(key)
    errors: list[float | None] = [r["test"][headline(r["method"])] for r in results]
    wanted = [(f"Test {heading(chapter.metric)}", errors)]
    for kind, words in (("multiplier", "Mean |multiplier| at the end"), ("gamma", "Mean |gamma| at the end")):
        wanted.append((words, [_final(run, kind) for run in runs]))
    found = [(words, swept_curves(results, numbers, key)) for words, numbers in wanted]
    order = list(found[0][1])
    return [
        level_figure(f"{words} against {name}", name, words, _spreads(curves), order, _cell)
        for words, curves in found
        if curves
    ]


def _cell(mean: float, deviation: float) -> str:
    return spread_text({"mean": mean, "std": deviation})


def _final(run: Run, kind: str) -> float | None:
    return swept.final_size(run.rows, kind) if is_learnt(run.result["method"]) else None


def _spreads(curves: Curves) -> dict[str, dict[float, tuple[float, float]]]:
    return {
        label: {
            value: (spread(several).mean, spread(several).std or 0.0)
            for value, several in sorted(levels.items())
        }
        for label, levels in curves.items()
    }


def failed(found: failures.Shares, name: str) -> Figure | None:
    """The share of failed runs against the swept setting `name`; None where no run failed or nothing was swept."""
    swept_shares = {
        label: {p: 100 * bad / runs for p, (bad, runs) in sorted(counts.items())}
        for label, counts in (
            (k, {p: c for p, c in v.items() if p != failures.ALL}) for k, v in found.items()
        )
        if counts
    }
    if not swept_shares or not failures.any_failed(found):
        return None
    traces = [
        _level_trace(label, index, list(levels), list(levels.values()))
        for index, (label, levels) in enumerate(swept_shares.items())
    ]
    places = sorted({p for levels in swept_shares.values() for p in levels})
    head, rows = failures.share_rows(found)
    return Figure(
        f"Failed runs against {name}",
        "Share of the runs at each value; what counts as failed stands with the table.",
        tuple(traces),
        {"xaxis": _levels(name, places), "yaxis": axis("failed runs (%)", range=[-4, 104])},
        Numbers(head, tuple(rows)),
        legend_height(traces, 360),
    )


def further_conditions(chapter: Chapter) -> list[Figure]:
    """The metric under dropped points, corruptions and the like: a figure for every family of them."""
    found = conditions.curves([run.result for run in chapter.finished])
    order = list(dict.fromkeys(label for family in found.values() for label in family))
    words = heading(chapter.metric)
    return [
        level_figure(
            f"{words} under {family}",
            f"{family}: level",
            words,
            by_label,
            order,
            lambda mean, deviation: conditions.cell(mean, deviation, chapter.metric),
        )
        for family, by_label in found.items()
    ]


def level_figure(
    title: str,
    place: str,
    words: str,
    curves: Mapping[str, Mapping[float, tuple[float, float]]],
    order: Sequence[str],
    cell: Callable[[float, float], str],
) -> Figure:
    """Means with bars of one standard deviation against a level, a line for every label; colours by place in `order`;
    `cell` prints mean and deviation in the table.
    """
    traces: list[Trace] = []
    for label, levels in curves.items():
        places = sorted(levels)
        trace = _level_trace(label, order.index(label), places, [levels[p][0] for p in places])
        bars = {"type": "data", "array": [rounded(levels[p][1]) for p in places], "thickness": 1}
        traces.append(trace | {"error_y": bars})
    places = sorted({p for levels in curves.values() for p in levels})
    means = [value for levels in curves.values() for value, _ in levels.values()]
    rows = tuple(
        (f"{p:g}", *(cell(*levels[p]) if p in levels else "" for levels in curves.values())) for p in places
    )
    layout = {"xaxis": _levels(place, places), "yaxis": scaled(words, means)}
    return Figure(
        title,
        "Mean over seeds; bars are one standard deviation.",
        tuple(traces),
        layout,
        Numbers((place, *curves), rows),
        legend_height(traces, 360),
    )


def _levels(words: str, places: Sequence[float]) -> dict[str, Any]:
    """An axis for few levels, each of them labelled."""
    labelled = {"tickvals": list(places), "ticktext": [f"{place:g}" for place in places]}
    return scaled(words, places) | (labelled if len(places) <= 9 else {})


def _level_trace(label: str, index: int, places: Sequence[float], values: Sequence[float]) -> Trace:
    """A line with marks; colour, dashes and symbol tell labels apart."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain(label),
        "x": list(places),
        "y": [rounded(value) for value in values],
        "line": {"color": colour(index), "dash": dash(index), "width": 2},
        "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 7},
    }


def leading_number(text: str | None) -> float | None:
    """5.6 of "5.6 ± 0.25"; None where a text does not begin with a number."""
    match = re.match(r"-?\d+(\.\d+)?(e-?\d+)?", text or "")
    return float(match.group()) if match else None


def _markers(
    name: str, labels: Sequence[str], values: Sequence[float | None], symbol: str, index: int, size: int
) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "y": [plain(label) for label in labels],
        "x": [rounded(value) for value in values],
        "marker": {
            "symbol": symbol,
            "color": colour(index),
            "size": size,
            "line": {"width": 2, "color": colour(index)},
        },
        "hovertemplate": "%{y}: %{x}<extra>" + name + "</extra>",
    }


def _names(labels: Sequence[str]) -> dict[str, Any]:
    """A vertical axis of labels, the first on top."""
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": [plain(label) for label in reversed(labels)],
        "automargin": True,
        "title": {"text": ""},
    }
