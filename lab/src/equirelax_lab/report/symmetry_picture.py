"""The picture of `equirelax symmetry`: what every residual does, and how its strength came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from equirelax.files import atomic_write
from equirelax_lab.report.picture import series, sizes

Table = Sequence[Mapping[str, str]]
FLOOR = 1e-5
"""An axis begins at this share of its largest value."""
ZERO = 1e-9
"""Values below this are rounding, and drawn as zero."""


def draw_symmetry(path: Path, study: Mapping[str, Any], rows: Table, title: str) -> None:
    """Write a PNG: above, errors and sizes residual by residual (where they were measured); below, gamma,
    multipliers with slacks, and abs(gamma) x norm of W over training (what there is of them).

    Args:
        path: Where to.
        study: From `symmetry_study`.
        rows: Of the run's metrics.csv.
        title: Above everything.
    """
    keys = [row["key"] for row in study["residuals"]]
    # the order of the residuals is the order of the layers: so is that of the colours
    shades = matplotlib.colormaps["viridis"]
    colours = {key: shades(0.92 * i / max(len(keys) - 1, 1)) for i, key in enumerate(keys)}
    measured = any(row["alone"] is not None for row in study["residuals"])
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        height = 0.26 * len(keys) + 1.3 if measured else 0.0
        figure = Figure(figsize=(12, height + 3.6), layout="constrained")
        grid = (
            figure.add_gridspec(2, 6, height_ratios=(height, 3.2)) if measured else figure.add_gridspec(1, 6)
        )
        if measured:
            _errors(figure.add_subplot(grid[0, :3]), study["residuals"], colours)
            _sizes(figure.add_subplot(grid[0, 3:]), study["residuals"], colours)
        shown = [
            _gammas,
            *([_prices] if "multiplier" in study["dynamics"]["drift"] else []),
            *([_products] if sizes(rows) else []),
        ]
        for index, drawn in enumerate(shown):
            width = 6 // len(shown)
            panel = figure.add_subplot(grid[-1, index * width : (index + 1) * width])
            drawn(panel, rows, colours)
            _frame(panel, study)
            if not measured and index == 0:  # else the bars say which colour is whose
                panel.legend(frameon=False, fontsize=7, ncols=2)
        figure.suptitle(title)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=150)


def _errors(panel: Axes, residuals: Sequence[Mapping[str, Any]], colours: Mapping[str, Any]) -> None:
    """Bars: error that a residual adds; dots: error of the output with it alone; ticks: bound on the bar."""
    _bars(panel, residuals, colours, "added")
    _marks(panel, residuals, "alone", "o", "error of the output, this one alone")
    _marks(panel, residuals, "bound", "|", "bound on the bar")
    panel.set_title("equivariance error that each residual adds (bar)", fontsize=9, loc="left")
    panel.set_xlabel("relative error")
    _finish(panel, [row[name] for row in residuals for name in ("added", "alone", "bound")])


def _sizes(panel: Axes, residuals: Sequence[Mapping[str, Any]], colours: Mapping[str, Any]) -> None:
    """Bars: abs(gamma) x norm of W; dots: abs(gamma); triangles: share of the output."""
    _bars(panel, residuals, colours, "size")
    strengths = [{**row, "strength": abs(row["gamma"])} for row in residuals]
    _marks(panel, strengths, "strength", "o", "|gamma|")
    _marks(panel, strengths, "share", "^", "share of the output")
    panel.set_title("size: |gamma| x norm of W (bar)", fontsize=9, loc="left")
    _finish(panel, [row[name] for row in strengths for name in ("size", "strength", "share")])
    panel.tick_params(labelleft=False)


def _bars(panel: Axes, residuals: Sequence[Mapping[str, Any]], colours: Mapping[str, Any], name: str) -> None:
    """A bar for every residual; where there is none, a word that says why."""
    places = range(len(residuals))
    values = [row[name] or 0.0 for row in residuals]
    panel.barh(places, values, height=0.62, color=[colours[row["key"]] for row in residuals])
    panel.set_yticks(places, [row["key"] or "(model)" for row in residuals])
    panel.invert_yaxis()
    for place, row in zip(places, residuals, strict=True):
        if row[name] is None or row[name] <= ZERO:
            word = "n/a" if row[name] is None else "0"
            panel.text(0.01, place, word, transform=panel.get_yaxis_transform(), va="center", fontsize=8)


def _marks(panel: Axes, residuals: Sequence[Mapping[str, Any]], name: str, marker: str, label: str) -> None:
    shown = [(row[name], place) for place, row in enumerate(residuals) if (row[name] or 0.0) > ZERO]
    if shown:
        values, places = zip(*shown, strict=True)
        face = "white" if marker == "o" else "black"
        panel.scatter(
            values,
            places,
            marker=marker,
            s=34,
            c=face,
            edgecolors="black" if marker == "o" else None,
            linewidths=1.1,
            label=label,
            zorder=3,
        )


def _finish(panel: Axes, values: Sequence[float | None]) -> None:
    """A logarithmic axis where there is anything to show."""
    shown = [value for value in values if value is not None and value > ZERO]
    if shown:
        low = max(min(shown), FLOOR * max(shown))
        panel.set_xscale("log")
        panel.set_xlim(low / 3, max(shown) * 3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    else:
        panel.text(0.5, 0.5, "zero, or n/a", transform=panel.transAxes, ha="center", va="center")
    panel.grid(axis="x", alpha=0.25, linewidth=0.5)


def _courses(panel: Axes, rows: Table, kind: str, colours: Mapping[str, Any], style: str = "-") -> None:
    for key, colour in colours.items():
        found = series(rows, f"{kind}/{key}")
        panel.plot(
            list(found),
            list(found.values()),
            color=colour,
            linewidth=1.2,
            linestyle=style,
            label=key or "(model)",
        )


def _gammas(panel: Axes, rows: Table, colours: Mapping[str, Any]) -> None:
    _courses(panel, rows, "gamma", colours)
    panel.set_title("gamma (dashed: selected epoch; grey: last tenth)", fontsize=9, loc="left")


def _prices(panel: Axes, rows: Table, colours: Mapping[str, Any]) -> None:
    """Multipliers, with dotted slacks where there are any."""
    _courses(panel, rows, "multiplier", colours)
    _courses(panel, rows, "slack", colours, ":")
    slack = any(column.startswith("slack/") for column in rows[0])
    panel.set_title(
        "multiplier (solid) and slack u (dotted)" if slack else "multiplier", fontsize=9, loc="left"
    )


def _products(panel: Axes, rows: Table, colours: Mapping[str, Any]) -> None:
    for key, found in sizes(rows).items():
        panel.plot(list(found), list(found.values()), color=colours[key], linewidth=1.2)
    panel.set_title("|gamma| x norm of W", fontsize=9, loc="left")


def _frame(panel: Axes, study: Mapping[str, Any]) -> None:
    """What the panels over training share."""
    window = study["dynamics"]["window"]
    panel.axvspan(window["first"], window["last"], color="0.5", alpha=0.12, linewidth=0)
    panel.axvline(study["selected_epoch"], color="0.35", linewidth=0.8, linestyle="--")
    panel.axhline(0, color="0.6", linewidth=0.6)
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
