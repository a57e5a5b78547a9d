"""Figures of one number against another: a swept setting, the level of a further condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from equirelax_lab.report import failures, tables
from equirelax_lab.report.axes import at_values, scaled
from equirelax_lab.report.drawing import Figure
from equirelax_lab.report.lines import legend, legend_height, line, panels, panels_height, tip
from equirelax_lab.report.looks import INK, Look, looks
from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.rows import swept_curves, swept_setting
from equirelax_lab.report.runs import Run
from equirelax_lab.report.statistics import spread, spread_text
from equirelax_lab.report.table import final_size, headline
from equirelax_lab.tasks.methods import is_learnt
from equirelax_lab.tasks.task import heading

Curve = Mapping[float, tuple[float, float]]
"""Place -> (mean, standard deviation over seeds)."""
BARS = "Mean over seeds; bars are one standard deviation."


def sweeps(runs: Sequence[Run], metric: Mapping[str, Any]) -> list[Figure]:
    """If one number was swept: the deployed networks' metric against it, and the final size of multipliers and gammas."""
    results = [run.result for run in runs]
    key = swept_setting(results) if results else None
    if key is None:
        return []
    name = on_axis(key)
    wanted: list[tuple[str, list[float | None]]] = [
        (f"Test {heading(metric)}", [r["test"][headline(r["method"])] for r in results])
    ]
    for kind in ("multiplier", "gamma"):
        sizes = [final_size(run, kind) if is_learnt(run.result["method"]) else None for run in runs]
        wanted.append((f"Mean |{kind}| at the end", sizes))
    found = []
    for words, numbers in wanted:
        if curves := swept_curves(results, numbers, key):
            spreads = {
                label: {
                    value: (one.mean, one.std or 0.0)
                    for value, several in levels.items()
                    for one in [spread(several)]
                }
                for label, levels in curves.items()
            }
            found.append(_against(f"{words} against {name}", name, words, spreads, _spread_cell))
    return found


def on_axis(key: str) -> str:
    """The name of a setting on an axis."""
    return key.rpartition(".")[2].replace("_", " ")


def _spread_cell(average: float, deviation: float) -> str:
    return spread_text({"mean": average, "std": deviation})


def failed(found: failures.Shares, name: str) -> Figure | None:
    """The share of failed runs against the swept setting `name`; None if no run failed or nothing was swept."""
    numbers = failures.failures(found)
    swept = {
        label: {
            place: (100 * bad / runs, 0.0) for place, (bad, runs) in counts.items() if place != failures.ALL
        }
        for label, counts in found.items()
    }
    swept = {label: levels for label, levels in swept.items() if levels}
    if not swept or numbers is None:
        return None
    one = _against(
        f"Failed runs against {name}", name, "failed runs (%)", swept, lambda m, _: f"{m:.0f}", (-4.0, 104.0)
    )
    caption = "Share of the runs at each value; see the table for what counts as failed."
    return Figure(one.title, caption, one.draw, numbers, one.height)


def _against(
    title: str,
    place: str,
    words: str,
    curves: Mapping[str, Curve],
    cell: Callable[[float, float], str],
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Means with bars of one standard deviation against a number, a line for every row; `cell` formats both in the table."""
    places = sorted({level for own in curves.values() for level in own})
    means = [value for own in curves.values() for value, _ in own.values()]

    def draw(part: FigureBase) -> None:
        panel = part.subplots()
        for row, look in looks(list(curves)).items():
            _bars(panel, curves[row], look, row, f"{row}, {place}", cell)
        at_values(panel.xaxis, place, places)
        scaled(panel.yaxis, words, means, "linear" if limits else None)
        if limits:
            panel.set_ylim(*limits)
        legend(part, panel)

    rows = tuple((f"{p:g}", *(cell(*own[p]) if p in own else "" for own in curves.values())) for p in places)
    return Figure(
        title, BARS, draw, Numbers(title, (place, *curves), rows), 3.1 + legend_height(list(curves))
    )


def further_conditions(found: tables.Levels, metric: Mapping[str, Any]) -> Figure | None:
    """The metric under dropped points, corruptions and the like, a panel for every family; None if nothing was measured."""
    numbers = tables.conditions(found, metric)
    if numbers is None:
        return None
    words = heading(metric)
    rows = list(dict.fromkeys(row for by_row in found.values() for row in by_row))
    columns = 2 if len(found) < 5 else 3

    def printed(average: float, deviation: float) -> str:
        return tables.cell(average, deviation, metric)

    def draw(part: FigureBase) -> None:
        drawn = panels(part, list(found), columns)
        for panel, (family, by_row) in zip(drawn, found.items(), strict=True):
            styles = looks(rows)
            for row, own in by_row.items():
                _bars(panel, own, styles[row], row, f"{row}, {family}", printed)
            at_values(panel.xaxis, "", sorted({level for own in by_row.values() for level in own}))
            panel.set_ylabel("")
        if len(found) == 1:
            drawn[0].set_ylabel(words)
        legend(part, *drawn)

    return Figure(
        f"{words} under further conditions",
        f"Of the deployed networks, against the level of each condition. {BARS}",
        draw,
        numbers,
        panels_height(len(found), columns) + legend_height(rows),
    )


def _bars(
    panel: Axes, own: Curve, look: Look, row: str, tooltip: str, cell: Callable[[float, float], str]
) -> None:
    """Draw a line with markers and error bars; a tooltip begins with `tooltip` and has the numbers as `cell` formats them."""
    order = sorted(own)
    line(panel, {level: own[level][0] for level in order}, look, row, marker=look.marker)
    heights, deviations = ([own[level][index] for level in order] for index in (0, 1))
    panel.errorbar(order, heights, deviations, fmt="none", ecolor=look.colour, elinewidth=0.9)
    for level in order:
        (drawn,) = panel.plot(
            [level], [own[level][0]], linestyle="none", marker="o", markersize=11, alpha=0, color=INK
        )
        tip(drawn, f"{tooltip}: {cell(*own[level])} at {level:g}")
