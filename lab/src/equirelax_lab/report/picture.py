"""Validation curves and strengths of several runs in one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter

from equirelax.files import atomic_write
from equirelax_lab.report.rows import method_of
from equirelax_lab.report.summary import headline

# Okabe and Ito: told apart by colour-blind readers too; line styles differ besides.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

Table = Sequence[Mapping[str, str]]
"""Rows of a metrics.csv."""


def look(index: int) -> dict[str, Any]:
    """Colour and line style of the `index`-th method; the styles move on when the colours begin anew."""
    count = len(COLOURS)
    return {"color": COLOURS[index % count], "linestyle": STYLES[(index + index // count) % len(STYLES)]}


def draw(
    path: Path, runs: Mapping[str, Sequence[Table]], title: str, metric: str, scale: str = "log"
) -> None:
    """Write a PNG: validation curves on the left, below them, where runs have it, the loss on training data; on the right for
    every relaxed method a panel of gamma and, where
    the norms of the residuals are known, one of abs(gamma) x norm of W, for gamma alone may be traded for W.

    Args:
        path: Where to.
        runs: Method (or its variant, see `variants.labels`) -> metrics.csv of its seeds.
        title: Above everything.
        metric: Label of the vertical axis of the curves.
        scale: Of that axis: log for errors, linear for accuracies.
    """
    relaxed = [name for name, tables in runs.items() if any(gamma_columns(table) for table in tables)]
    rows = max(len(relaxed), 1)
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        sized = any(sizes(table) for tables in runs.values() for table in tables)
        figure = Figure(figsize=(14 if sized else 11, max(6.0, 1.7 * rows + 1)), layout="constrained")
        ratios = (1.4, *[1] * (bool(relaxed) + sized))
        grid = figure.add_gridspec(rows, len(ratios), width_ratios=ratios)
        followed = any(series(table, "fit/projected") for tables in runs.values() for table in tables)
        left = grid[:, 0].subgridspec(1 + followed, 1, height_ratios=(1.5, 1)[: 1 + followed])
        curves = figure.add_subplot(left[0])
        for index, (name, tables) in enumerate(runs.items()):
            _curve(curves, name, tables, index)
        curves.set(
            xlabel="epoch",
            ylabel=metric,
            yscale=scale,
            title="validation: mean over seeds, band from least to largest",
        )
        if scale == "log":
            # plain numbers, also between powers of ten where the curves span less than two of them
            curves.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            curves.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.6)))
        curves.legend(frameon=False)
        curves.grid(alpha=0.25, which="both", linewidth=0.5)
        if followed:
            _fit(figure.add_subplot(left[1], sharex=curves), runs)
        first: Axes | None = None
        for row, name in enumerate(relaxed):
            panel = figure.add_subplot(grid[row, 1], sharex=first)
            first = first or panel
            panels = [panel, *([figure.add_subplot(grid[row, 2], sharex=first)] if sized else [])]
            _strengths(panels, name, runs[name], list(runs).index(name))
            for one in panels:
                if row == len(relaxed) - 1:
                    one.set_xlabel("epoch")
                else:
                    one.tick_params(labelbottom=False)
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


def sizes(table: Table) -> dict[str, dict[int, float]]:
    """Residual -> epoch (from 1) -> abs(gamma) x norm of W, in the epochs that have both."""
    found = {}
    for column in gamma_columns(table):
        key = column.removeprefix("gamma/")
        gammas, norms = series(table, column), series(table, f"weight/{key}")
        if norms:
            found[key] = {epoch: abs(gammas[epoch]) * norms[epoch] for epoch in norms if epoch in gammas}
    return found


def _curve(panel: Axes, name: str, tables: Sequence[Table], index: int) -> None:
    kind = headline(method_of(name))
    found = [series(table, f"val/{kind}") for table in tables]
    epochs = sorted(set.intersection(*(set(one) for one in found))) if found else []
    if not epochs:
        return
    values = [[one[epoch] for one in found] for epoch in epochs]
    means = [sum(v) / len(v) for v in values]
    panel.plot(epochs, means, label=f"{name} ({kind})", linewidth=1.4, **look(index))
    if len(found) > 1:
        panel.fill_between(
            epochs,
            [min(v) for v in values],
            [max(v) for v in values],
            alpha=0.15,
            linewidth=0,
            color=look(index)["color"],
        )


def _fit(panel: Axes, runs: Mapping[str, Sequence[Table]]) -> None:
    """The loss on training data, projected with the method's line and as trained dotted; means over seeds."""
    for index, (_, tables) in enumerate(runs.items()):
        relaxed = any(gamma_columns(table) for table in tables)
        for kind in ("projected", "relaxed") if relaxed else ("projected",):
            found = [one for table in tables if (one := series(table, f"fit/{kind}"))]
            epochs = sorted(set.intersection(*(set(one) for one in found))) if found else []
            means = [sum(one[epoch] for one in found) / len(found) for epoch in epochs]
            style = look(index) if kind == "projected" else {**look(index), "linestyle": ":"}
            panel.plot(epochs, means, linewidth=1.2 if kind == "projected" else 0.9, **style)
    panel.set_title("loss on training data: projected, and as trained (dotted)", fontsize=8, loc="left")
    panel.set(xlabel="epoch", ylabel="loss", yscale="log")
    panel.grid(alpha=0.25, which="both", linewidth=0.5)


def _strengths(panels: Sequence[Axes], name: str, tables: Sequence[Table], index: int) -> None:
    """gamma on the first panel, abs(gamma) x norm of W on the second if there is one."""
    style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "linewidth": 0.7, "alpha": 0.6}
    for table in tables:
        for column in gamma_columns(table):
            found = series(table, column)
            panels[0].plot(list(found), list(found.values()), **style)
        for sized in sizes(table).values() if len(panels) > 1 else ():
            panels[1].plot(list(sized), list(sized.values()), **style)
    for panel, label in zip(panels, ("gamma", "|gamma| x norm of W"), strict=False):
        panel.axhline(0, color="#888888", linewidth=0.6)
        panel.set_ylabel(label)
    panels[0].set_title(f"{name}: a line for every residual and seed", fontsize=8, loc="left")
