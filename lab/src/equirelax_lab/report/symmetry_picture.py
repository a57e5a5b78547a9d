"""The picture of `equirelax symmetry`: how much every residual breaks, how large it is, and its course over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from equirelax_lab.report.axes import epochs, scaled
from equirelax_lab.report.drawing import styled, write_png
from equirelax_lab.report.lines import layer_colours, line
from equirelax_lab.report.looks import GROUND, INK, SOFT, Look
from equirelax_lab.report.runs import series, sizes
from equirelax_lab.report.symmetry import Rows, deployed, name_of

FLOOR = 1e-5
"""An axis begins at this share of the largest value on it."""
ZERO = 1e-9
"""Values below this are rounding, and drawn as zero."""


def draw_symmetry(path: Path, study: Mapping[str, Any], rows: Rows, title: str, again: str) -> None:
    """Write a PNG: above, errors and sizes residual by residual (if they were measured); below, gamma, multipliers with
    slacks, and abs(gamma) x norm of W over training (those that are available).

    Args:
        path: The file.
        study: The output of `symmetry_study`.
        rows: Rows of the run's metrics.csv.
        title: The title above everything, with the error of the deployed form.
        again: The command that writes the picture again.
    """
    keys = [row["key"] for row in study["residuals"]]
    # The residuals are in the order of the layers, and so are the colours.
    colours = dict(zip(keys, layer_colours(len(keys)), strict=True))
    measured = any(row["alone"] is not None for row in study["residuals"])
    with styled():
        height = 0.26 * len(keys) + 1.3 if measured else 0.0
        figure = Canvas(figsize=(12, height + 4.0), layout="constrained")
        grid = (
            figure.add_gridspec(2, 6, height_ratios=(height, 3.2)) if measured else figure.add_gridspec(1, 6)
        )
        if measured:
            _errors(figure.add_subplot(grid[0, :3]), study["residuals"], colours)
            _sizes(figure.add_subplot(grid[0, 3:]), study["residuals"], colours)
        drawn = [
            _gammas,
            *([_prices] if "multiplier" in study["dynamics"]["drift"] else []),
            *([_products] if sizes(rows) else []),
        ]
        for index, one in enumerate(drawn):
            width = 6 // len(drawn)
            panel = figure.add_subplot(grid[-1, index * width : (index + 1) * width])
            one(panel, rows, colours)
            _frame(panel, study)
            if not measured and index == 0:  # otherwise the bars show the colour of each residual
                panel.legend(frameon=False, fontsize=7, ncols=2)
        figure.suptitle(f"{title}\n{deployed(study)}", fontsize=10)
        write_png(path, figure, again)


def _errors(panel: Axes, residuals: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """Bars: error that a residual adds; dots: error of the output with only this residual; ticks: bound on the bar."""
    values = [row[name] for row in residuals for name in ("added", "alone", "bound")]
    _bars(panel, residuals, colours, "added", _least(values))
    _marks(panel, residuals, "alone", "o", "error of the output, this one alone")
    _marks(panel, residuals, "bound", "|", "bound on the bar")
    panel.set_title("equivariance error that each residual adds (bar)")
    _finish(panel, "relative error", values)


def _sizes(panel: Axes, residuals: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """Bars: abs(gamma) x norm of W; dots: abs(gamma); triangles: share of the output."""
    strengths = [{**row, "strength": abs(row["gamma"])} for row in residuals]
    values = [row[name] for row in strengths for name in ("size", "strength", "share")]
    _bars(panel, residuals, colours, "size", _least(values))
    _marks(panel, strengths, "strength", "o", "|gamma|")
    _marks(panel, strengths, "share", "^", "share of the output")
    panel.set_title("size: |gamma| x norm of W (bar)")
    _finish(panel, "", values)
    panel.tick_params(labelleft=False)


def _least(values: Sequence[float | None]) -> float:
    """Where an axis of these values begins."""
    shown = [value for value in values if value is not None and value > ZERO]
    return max(min(shown), FLOOR * max(shown)) / 3 if shown else 0.0


def _bars(
    panel: Axes, residuals: Sequence[Mapping[str, Any]], colours: Mapping[str, str], name: str, least: float
) -> None:
    """A bar for every residual, or the number if there is no bar or it ends before the axis begins."""
    places = range(len(residuals))
    values = [row[name] or 0.0 for row in residuals]
    panel.barh(places, values, height=0.62, color=[colours[row["key"]] for row in residuals])
    panel.set_yticks(places, [name_of(row) for row in residuals])
    panel.invert_yaxis()
    for place, row in zip(places, residuals, strict=True):
        if row[name] is None or row[name] <= max(least, ZERO):
            word = "n/a" if row[name] is None else "0" if row[name] <= ZERO else f"{row[name]:.1g}"
            panel.text(0.01, place, word, transform=panel.get_yaxis_transform(), va="center", fontsize=8)


def _marks(panel: Axes, residuals: Sequence[Mapping[str, Any]], name: str, marker: str, label: str) -> None:
    shown = [(row[name], place) for place, row in enumerate(residuals) if (row[name] or 0.0) > ZERO]
    if shown:
        values, places = zip(*shown, strict=True)
        panel.scatter(
            values,
            places,
            marker=marker,
            s=34,
            c=GROUND if marker == "o" else INK,
            edgecolors=INK if marker == "o" else None,
            linewidths=1.1,
            label=label,
            zorder=3,
        )


def _finish(panel: Axes, words: str, values: Sequence[float | None]) -> None:
    """Make the axis logarithmic if there is anything to show."""
    shown = [value for value in values if value is not None and value > ZERO]
    if shown:
        scaled(panel.xaxis, words, shown, "log")
        panel.set_xlim(_least(values), max(shown) * 3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    else:
        panel.text(0.5, 0.5, "zero, or n/a", transform=panel.transAxes, ha="center", va="center")
    panel.grid(axis="y", visible=False)


def _courses(panel: Axes, rows: Rows, kind: str, colours: Mapping[str, str], style: str = "-") -> None:
    for key, colour in colours.items():
        if found := series(rows, f"{kind}/{key}"):
            line(panel, found, Look(colour, style, "o"), key or "(model)", linewidth=1.2)


def _gammas(panel: Axes, rows: Rows, colours: Mapping[str, str]) -> None:
    _courses(panel, rows, "gamma", colours)
    panel.set_title("gamma (dashed: selected epoch; grey: last tenth)")


def _prices(panel: Axes, rows: Rows, colours: Mapping[str, str]) -> None:
    """Draw multipliers, with dotted slacks if there are any."""
    _courses(panel, rows, "multiplier", colours)
    _courses(panel, rows, "slack", colours, ":")
    slack = any(column.startswith("slack/") for column in rows[0])
    panel.set_title("multiplier (solid) and slack u (dotted)" if slack else "multiplier")


def _products(panel: Axes, rows: Rows, colours: Mapping[str, str]) -> None:
    for key, found in sizes(rows).items():
        line(panel, found, Look(colours[key], "-", "o"), key or "(model)", linewidth=1.2)
    panel.set_title("|gamma| x norm of W")


def _frame(panel: Axes, study: Mapping[str, Any]) -> None:
    """Draw the elements that all panels over training share."""
    window = study["dynamics"]["window"]
    panel.axvspan(window["first"], window["last"], color="0.5", alpha=0.12, linewidth=0)
    panel.axvline(study["selected_epoch"], color="0.35", linewidth=0.8, linestyle="--")
    panel.axhline(0, color=SOFT, linewidth=0.6)
    epochs(panel)
