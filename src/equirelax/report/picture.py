"""Validation curves and strengths of several runs in one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equirelax.files import atomic_write
from equirelax.report.summary import headline
from equirelax.report.variants import method_of

# Okabe and Ito: told apart by colour-blind readers too; line styles differ besides.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

Table = Sequence[Mapping[str, str]]
"""Rows of a metrics.csv."""


def draw(path: Path, runs: Mapping[str, Sequence[Table]], title: str, metric: str) -> None:
    """Write a PNG: validation curves on the left, one panel of strengths for every relaxed method on the
    right.

    Args:
        path: Where to.
        runs: Method (or its variant, see `variants.labels`) -> metrics.csv of its seeds.
        title: Above everything.
        metric: Label of the vertical axis of the curves.
    """
    relaxed = [name for name, tables in runs.items() if any(gamma_columns(table) for table in tables)]
    rows = max(len(relaxed), 1)
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, max(4.5, 1.7 * rows + 1)), layout="constrained")
        grid = figure.add_gridspec(rows, 2, width_ratios=(1.4, 1)) if relaxed else figure.add_gridspec(1, 1)
        curves = figure.add_subplot(grid[:, 0])
        for index, (name, tables) in enumerate(runs.items()):
            _curve(curves, name, tables, index)
        curves.set(
            xlabel="epoch",
            ylabel=metric,
            yscale="log",
            title="validation: mean over seeds, band from least to largest",
        )
        curves.legend(frameon=False)
        curves.grid(alpha=0.25, which="both", linewidth=0.5)
        first: Axes | None = None
        for row, name in enumerate(relaxed):
            panel = figure.add_subplot(grid[row, 1], sharex=first)
            first = first or panel
            _strengths(panel, name, runs[name], list(runs).index(name))
            if row == len(relaxed) - 1:
                panel.set_xlabel("epoch")
            else:
                panel.tick_params(labelbottom=False)
        figure.suptitle(title)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=150)


def series(table: Table, column: str) -> dict[int, float]:
    """Epoch (from 1) -> value, where the column has a finite one."""
    found = {int(row["epoch"]) + 1: float(row[column]) for row in table if row.get(column)}
    return {epoch: value for epoch, value in found.items() if math.isfinite(value)}


def gamma_columns(table: Table) -> list[str]:
    """Columns of strengths, in the model's order."""
    return [key for key in table[0] if key.startswith("gamma/")] if table else []


def _curve(panel: Axes, name: str, tables: Sequence[Table], index: int) -> None:
    kind = headline(method_of(name))
    found = [series(table, f"val/{kind}") for table in tables]
    epochs = sorted(set.intersection(*(set(one) for one in found))) if found else []
    if not epochs:
        return
    values = [[one[epoch] for one in found] for epoch in epochs]
    style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)]}
    means = [sum(v) / len(v) for v in values]
    panel.plot(
        epochs, means, label=f"{name} ({kind})", linestyle=STYLES[index % len(STYLES)], linewidth=1.4, **style
    )
    if len(found) > 1:
        panel.fill_between(
            epochs, [min(v) for v in values], [max(v) for v in values], alpha=0.15, linewidth=0, **style
        )


def _strengths(panel: Axes, name: str, tables: Sequence[Table], index: int) -> None:
    colour = COLOURS[index % len(COLOURS)]
    for table in tables:
        for column in gamma_columns(table):
            found = series(table, column)
            panel.plot(list(found), list(found.values()), color=colour, linewidth=0.7, alpha=0.6)
    panel.axhline(0, color="#888888", linewidth=0.6)
    panel.set_ylabel("gamma")
    panel.set_title(f"{name}: a line for every residual and seed", fontsize=8, loc="left")
