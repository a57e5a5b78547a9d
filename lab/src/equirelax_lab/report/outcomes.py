"""Figures of the results: the deployed networks' test metric seed by seed, and how exactly they keep the symmetry."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from equirelax_lab.report.axes import scaled
from equirelax_lab.report.drawing import Figure
from equirelax_lab.report.lines import legend, tip
from equirelax_lab.report.looks import GROUND, INK, SOFT, looks
from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.statistics import shown, spread_text
from equirelax_lab.report.table import Table
from equirelax_lab.tasks.task import heading

ROUNDING = "An exactly equivariant network is at rounding, near 1e-16 to 1e-15 in float64."


def by_seed(table: Table, summary: Mapping[str, Any]) -> Figure:
    """The deployed networks' test metric: a point for every seed, their mean, and the published value."""
    methods, words = summary["methods"], heading(summary["metric"])
    points = {name: table.values(name, "test", row["headline"]) for name, row in methods.items()}
    published = {name: value for name, row in methods.items() if (value := leading_number(row["published"]))}

    def draw(part: FigureBase) -> None:
        panel = part.subplots()
        for place, (name, found) in enumerate(points.items()):
            look = looks(list(methods))[name]
            for seed, value in found.items():
                (drawn,) = panel.plot(
                    [value], [place], linestyle="none", marker="o", markerfacecolor=GROUND, markersize=6,
                    color=look.colour,
                )  # fmt: skip
                tip(drawn, f"{name}, seed {seed}: {value:.5g}")
            average = methods[name]["test"][methods[name]["headline"]]["mean"]
            (drawn,) = panel.plot(
                [average], [place], linestyle="none", marker="|", markersize=17, markeredgewidth=2, color=look.colour,
            )  # fmt: skip
            tip(drawn, f"{name}, mean: {average:.5g}")
        for name, value in published.items():
            (drawn,) = panel.plot(
                [value], [list(methods).index(name)], linestyle="none", marker="x", color=SOFT, markersize=6
            )
            tip(drawn, f"{name}, published: {value:g}")
        panel.plot(
            [],
            [],
            linestyle="none",
            marker="o",
            markerfacecolor=GROUND,
            color=INK,
            markersize=6,
            label="each seed",
        )
        panel.plot(
            [], [], linestyle="none", marker="|", markersize=12, markeredgewidth=2, color=INK, label="mean"
        )
        if published:
            panel.plot([], [], linestyle="none", marker="x", markersize=6, color=SOFT, label="published")
        _names(panel, list(methods))
        panel.set_xlabel(words)
        legend(part, panel)

    rows = tuple(
        (
            name,
            ", ".join(shown(value) for value in points[name].values()),
            spread_text(row["test"][row["headline"]]),
            row["published"] or "",
        )
        for name, row in methods.items()
    )
    return Figure(
        f"Test {words}",
        "The networks that the methods deploy (projected; with their residuals for methods that keep them). "
        "Published values: the papers' own, on other data and hardware.",
        draw,
        Numbers(f"Test {words}", ("method", "seeds", "mean and deviation", "published"), rows),
        1.2 + 0.28 * len(methods),
    )


def leading_number(text: str | None) -> float | None:
    """5.6 for "5.6 ± 0.25"; None if a text does not begin with a number."""
    match = re.match(r"-?\d+(\.\d+)?(e-?\d+)?", text or "")
    return float(match.group()) if match else None


def selected_equivariance(summary: Mapping[str, Any]) -> Figure | None:
    """The equivariance error of the selected networks, as deployed and in their other form; None if unknown."""
    known = {name: row for name, row in summary["methods"].items() if row["equivariance_error"]}
    if not known:
        return None
    errors = {name: _forms(row) for name, row in known.items()}

    def draw(part: FigureBase) -> None:
        panel = part.subplots()
        values = [error for forms in errors.values() for error in forms.values() if error > 0]
        for place, (name, forms) in enumerate(errors.items()):
            colour = looks(list(known))[name].colour
            for form, error in forms.items():
                if error > 0:
                    deployed = form == known[name]["headline"]
                    face = colour if deployed else GROUND
                    (drawn,) = panel.plot(
                        [error], [place], linestyle="none", marker="o", color=colour, markerfacecolor=face,
                        markersize=6, zorder=3 if deployed else 2,
                    )  # fmt: skip
                    tip(drawn, f"{name}, {form}{', deployed' if deployed else ''}: {error:.2g}")
        for face, words in ((INK, "deployed"), (GROUND, "the other form")):
            panel.plot(
                [],
                [],
                linestyle="none",
                marker="o",
                color=INK,
                markerfacecolor=face,
                markersize=6,
                label=words,
            )
        _names(panel, list(known))
        scaled(panel.xaxis, "relative error", values or [1.0], "log")
        legend(part, panel)

    first = next(iter(known.values()))["equivariance_error"]
    rows = tuple(
        (
            name,
            f"{row['headline']}: {errors[name][row['headline']]:.1e}",
            *(f"{e:.1e}" for e in errors[name].values()),
        )
        for name, row in known.items()
    )
    title = "Equivariance error of the selected networks"
    return Figure(
        title,
        f"Largest relative error over random elements of {first['group']} and over seeds, in {first['dtype']}, of the weights "
        "that validation selected. Filled markers: as deployed (projected, or with the residuals if a method keeps them); open: "
        f"in the other form. {ROUNDING} An error of exactly zero has no place on a logarithmic axis; the table has it.",
        draw,
        Numbers(title, ("method", "deployed", "projected", "with residuals"), rows),
        1.2 + 0.28 * len(known),
    )


def _forms(row: Mapping[str, Any]) -> dict[str, float]:
    """State of the network -> its error."""
    error = row["equivariance_error"]
    return {"projected": error["after"], "relaxed": error["before"]}


def _names(panel: Axes, names: Sequence[str]) -> None:
    """Label a vertical axis with names, the first on top."""
    panel.set_yticks(range(len(names)), list(names))
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(axis="y", visible=False)
