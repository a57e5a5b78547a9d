"""Figures of training over the epochs: validation, loss, penalty, steps, and the equivariance error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import FigureBase

from equirelax_lab.report.axes import epochs, scaled
from equirelax_lab.report.drawing import Figure
from equirelax_lab.report.facets import Facet, facets
from equirelax_lab.report.lines import legend, legend_height, line, panels, panels_height, thinned
from equirelax_lab.report.looks import GROUND, INK, looks
from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.outcomes import ROUNDING
from equirelax_lab.report.statistics import shown
from equirelax_lab.report.table import Course, Table, common, mean
from equirelax_lab.tasks.task import heading

STEPS = (
    "Root mean square of the change of a weight in one of an epoch's last optimiser steps; mean over seeds."
)
SECOND: dict[str, Any] = {"linestyle": ":", "linewidth": 1.0, "markerfacecolor": GROUND}
"""The style of a network's second state."""
WORDS = {"projected": "projected", "relaxed": "with residuals"}


@dataclass(frozen=True)
class _Line:
    """A row in one state of its networks: the course of every seed, and their mean."""

    seeds: list[Course]
    mean: Course


def training(table: Table, metric: Mapping[str, Any]) -> list[Figure]:
    """Validation, also of averaged weights; loss and penalty; loss on training data; the size of optimiser steps."""
    found = [
        validation(table, metric),
        _states(
            table, f"Validation of averaged weights: {heading(metric)}", "averaged", heading(metric), metric,
            "The same of the weights' average over training, where a run keeps it.",
        ),
        _column(
            table, "Training loss", "train/loss",
            "The task's loss, without penalties, in the units of the loss; mean over each epoch and over seeds.",
        ),
        _column(
            table, "Penalty", "train/penalty",
            "The method's term in the loss: regularisation, or the Lagrangian's terms, which may be negative; mean over each "
            "epoch and over seeds.",
        ),
        fit(table),
        _column(table, "Size of a step of the strict weights", "update/strict", STEPS),
        _column(table, "Size of a step of the residuals' weights", "update/residual", STEPS),
    ]  # fmt: skip
    return [figure for figure in found if figure is not None]


def validation(table: Table, metric: Mapping[str, Any]) -> Figure | None:
    """The validation metric of the networks after projection and as they are trained."""
    return _states(
        table, f"Validation: {heading(metric)}", "val", heading(metric), metric,
        "Mean over seeds of the networks after projection (solid lines; band: least to greatest seed) and as they are "
        "trained, with their residuals (thin, dotted). Where the two differ, the network relies on what projection removes.",
    )  # fmt: skip


def fit(table: Table) -> Figure | None:
    """The loss on a fixed part of the training data."""
    return _states(
        table, "Loss on training data", "fit", "loss", {},
        "The task's loss on a fixed part of the training data, in evaluation mode and without augmentation, after projection "
        "(solid lines) and as trained (thin, dotted); mean over seeds. Where the projected loss lags behind, the residuals have "
        "learnt what the strict weights should learn.",
    )  # fmt: skip


def equivariance(table: Table) -> Figure | None:
    """The equivariance error over training; None if no run measured it."""
    return _states(
        table, "Equivariance error over training", "equivariance", "relative error", {},
        "Relative error in float64, the largest over a few group elements (the same throughout) on validation samples; mean "
        "over seeds. With residuals (solid lines): how far the network as trained is from equivariant. Projected (thin, "
        f"dotted), and networks that are equivariant throughout: rounding. {ROUNDING}",
        ("relaxed", "projected"),
    )  # fmt: skip


def _states(
    table: Table,
    title: str,
    prefix: str,
    words: str,
    metric: Mapping[str, Any],
    caption: str,
    states: tuple[str, str] = ("projected", "relaxed"),
) -> Figure | None:
    """Two states of the network over training, the first with solid lines and a band over seeds; None if nothing was logged."""
    lines: dict[tuple[str, str], _Line] = {}
    for row, runs in table.rows.items():
        for state in states if any(run.residuals for run in runs) else states[:1]:
            found = table.courses(row, f"{prefix}/{state}")
            if prefix not in ("val", "averaged"):  # errors and losses, on logarithmic axes
                found = [above for one in found if (above := {e: v for e, v in one.items() if v > 0})]
            if common(found):
                lines[row, state] = _Line(found, mean(found))
    values = [value for one in lines.values() for value in one.mean.values()]
    if not values:
        return None
    scale = "linear" if metric.get("higher_is_better") or min(values) <= 0 else "log"
    parts = facets(table, [row for row in table.rows if any((row, state) in lines for state in states)])
    both = any(state == states[1] for _, state in lines)

    def draw(part: FigureBase) -> None:
        drawn = panels(part, [one.title for one in parts])
        styles = _styles(parts)
        for panel, facet in zip(drawn, parts, strict=True):
            for label, row in facet.rows.items():
                for state in states:
                    if (one := lines.get((row, state))) is None:
                        continue
                    first, look = state == states[0], styles[label]
                    style = {} if first else SECOND
                    tooltip = row if (row, states[1]) not in lines else f"{row}, {WORDS[state]}"
                    shown_as = label if first else "_hidden"
                    line(panel, one.mean, look, shown_as, len(lines), tooltip, **style)
                    if first and len(one.seeds) > 1 and prefix == "val":
                        kept = list(thinned(one.mean, len(lines)))
                        low, high = ([side(c[e] for c in one.seeds) for e in kept] for side in (min, max))
                        panel.fill_between(kept, low, high, color=look.colour, alpha=0.15, linewidth=0)
            scaled(panel.yaxis, "", values, scale)
        if both:
            drawn[-1].plot([], [], color=INK, label=f"full: {WORDS[states[0]]}")
            drawn[-1].plot([], [], color=INK, label=f"dotted: {WORDS[states[1]]}", **SECOND)
        epochs(*drawn)
        if len(parts) == 1:
            drawn[0].set_ylabel(words)
        legend(part, *drawn)

    entries = [*_styles(parts), *(["dotted: with residuals"] * 2 if both else [])]
    named = {
        (f"{row}, {WORDS[state]}" if (row, states[1]) in lines else row): one.mean
        for (row, state), one in lines.items()
    }
    return Figure(
        title, caption, draw, curve_numbers(title, named), panels_height(len(parts)) + legend_height(entries)
    )


def _column(table: Table, title: str, column: str, caption: str) -> Figure | None:
    """A logged column over training; None if none of the rows has it, or it is zero throughout."""
    curves = {row: course for row in table.rows if (course := mean(table.courses(row, column)))}
    values = [value for one in curves.values() for value in one.values()]
    if not any(values):
        return None
    parts = facets(table, list(curves))

    def draw(part: FigureBase) -> None:
        drawn = panels(part, [one.title for one in parts])
        styles = _styles(parts)
        for panel, facet in zip(drawn, parts, strict=True):
            for label, row in facet.rows.items():
                line(panel, curves[row], styles[label], label, len(curves), row)
            scaled(panel.yaxis, "", values)
        epochs(*drawn)
        if len(parts) == 1:
            drawn[0].set_ylabel(title.lower())
        legend(part, *drawn)

    height = panels_height(len(parts)) + legend_height(list(_styles(parts)))
    return Figure(title, caption, draw, curve_numbers(title, curves), height)


def _styles(parts: Sequence[Facet]) -> dict[str, Any]:
    """A look for every label, the same in all panels."""
    return looks(list(dict.fromkeys(label for facet in parts for label in facet.rows)))


def curve_numbers(title: str, curves: Mapping[str, Mapping[int, float]], most: int = 12) -> Numbers:
    """A table of curves, one row for each, at `most` epochs or one more."""
    places = sorted({p for one in curves.values() for p in one})
    every = max(-(-len(places) // most), 1)
    kept = sorted({*places[::every], *places[-1:]})
    rows = tuple((row, *(shown(one.get(p)) for p in kept)) for row, one in curves.items())
    return Numbers(title, ("at epoch", *map(str, kept)), rows)
