"""The figures of a report, one function each: what came out, how training went, and what the strengths did layer by layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator

from equirelax_lab.report import tables
from equirelax_lab.report.drawing import (
    FEW,
    Figure,
    at_values,
    epochs,
    legend,
    legend_height,
    line,
    power,
    scaled,
    spans,
    thinned,
    tip,
)
from equirelax_lab.report.looks import BLUE, GROUND, INK, RED, SOFT, Look, looks
from equirelax_lab.report.rows import swept_curves, swept_setting
from equirelax_lab.report.runs import Chapter, Run
from equirelax_lab.report.statistics import shown, spread, spread_text
from equirelax_lab.report.table import Course, Table, common, final_size, headline, in_curves, mean
from equirelax_lab.report.tables import Numbers
from equirelax_lab.tasks.methods import is_learnt
from equirelax_lab.tasks.task import heading

EPOCH = "epoch"
MOST_ROWS = 9
"""In one figure of curves; with more rows there is a figure for every method."""
ROUNDING = "An exactly equivariant network is at rounding, near 1e-16 to 1e-15 in float64."
DIVERGING = LinearSegmentedColormap.from_list("diverging", [BLUE, "#f7f7f7", RED])
"""Sides that colour-blind readers tell apart, pale at zero."""

# What came out.


def by_seed(table: Table, summary: Mapping[str, Any]) -> Figure:
    """The deployed networks' test metric: a point for every seed, their mean, and the published value."""
    methods, words = summary["methods"], heading(summary["metric"])
    points = {name: table.values(name, "test", row["headline"]) for name, row in methods.items()}
    published = {name: value for name, row in methods.items() if (value := leading_number(row["published"]))}

    def draw(part: FigureBase) -> None:
        panel = part.subplots()
        for place, (name, found) in enumerate(points.items()):
            look = looks(list(methods))[name]
            for index, (seed, value) in enumerate(found.items()):
                (drawn,) = panel.plot(
                    [value], [place], linestyle="none", marker="o", markerfacecolor=GROUND, markersize=6,
                    color=look.colour, label=None if place or index else "each seed",
                )  # fmt: skip
                tip(drawn, f"{name}, seed {seed}: {value:.5g}")
            average = methods[name]["test"][methods[name]["headline"]]["mean"]
            (drawn,) = panel.plot(
                [average], [place], linestyle="none", marker="|", markersize=17, markeredgewidth=2,
                color=look.colour, label=None if place else "mean",
            )  # fmt: skip
            tip(drawn, f"{name}, mean: {average:.5g}")
        for index, (name, value) in enumerate(published.items()):
            (drawn,) = panel.plot(
                [value], [list(methods).index(name)], linestyle="none", marker="D", color=RED,
                label=None if index else "published",
            )  # fmt: skip
            tip(drawn, f"{name}, published: {value:g}")
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
        "The networks that the methods hand over (projected; with their residuals for methods that keep them). "
        "Published values: the papers' own, on other data and hardware.",
        draw,
        Numbers(f"Test {words}", ("method", "seeds", "mean and deviation", "published"), rows),
        1.2 + 0.28 * len(methods),
    )


def leading_number(text: str | None) -> float | None:
    """5.6 for "5.6 ± 0.25"; None where a text does not begin with a number."""
    match = re.match(r"-?\d+(\.\d+)?(e-?\d+)?", text or "")
    return float(match.group()) if match else None


def selected_equivariance(summary: Mapping[str, Any]) -> Figure | None:
    """The equivariance error of the selected networks, as trained and after projection; None where unknown."""
    known = {name: error for name, row in summary["methods"].items() if (error := row["equivariance_error"])}
    if not known:
        return None

    def draw(part: FigureBase) -> None:
        panel = part.subplots()
        kinds = (("as trained", "before", "o", RED), ("projected", "after", "s", BLUE))
        values = [error[key] for _, key, *_ in kinds for error in known.values() if error[key] > 0]
        for words, key, marker, colour in kinds:
            for place, (name, error) in enumerate(known.items()):
                if error[key] > 0:
                    (drawn,) = panel.plot(
                        [error[key]], [place], linestyle="none", marker=marker, color=colour, markersize=6
                    )
                    tip(drawn, f"{name}, {words}: {error[key]:.2g}")
            panel.plot([], [], linestyle="none", marker=marker, color=colour, label=words)
        _names(panel, list(known))
        scaled(panel.xaxis, "relative error", values or [1.0], "log")
        legend(part, panel)

    first = next(iter(known.values()))
    rows = tuple((name, f"{e['before']:.1e}", f"{e['after']:.1e}") for name, e in known.items())
    title = "Equivariance error of the selected networks"
    return Figure(
        title,
        f"Largest relative error over random elements of {first['group']} and over seeds, in {first['dtype']}, of the weights "
        f"that validation selected. {ROUNDING} An error of exactly zero has no place on a logarithmic axis; the table has it.",
        draw,
        Numbers(title, ("method", "as trained", "projected"), rows),
        1.2 + 0.28 * len(known),
    )


def sweeps(runs: Sequence[Run], metric: Mapping[str, Any]) -> list[Figure]:
    """Where one number was swept: the deployed networks' metric against it, and how large multipliers and gammas ended."""
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
            found.append(_levels(f"{words} against {name}", name, words, spreads, _spread_cell))
    return found


def on_axis(key: str) -> str:
    """The name of a setting on an axis."""
    return key.rpartition(".")[2].replace("_", " ")


def _spread_cell(average: float, deviation: float) -> str:
    return spread_text({"mean": average, "std": deviation})


def further_conditions(found: tables.Levels, metric: Mapping[str, Any]) -> list[Figure]:
    """The metric under dropped points, corruptions and the like: a figure for every family of them."""
    words = heading(metric)
    return [
        _levels(
            f"{words} under {family}",
            f"{family}: level",
            words,
            by_row,
            lambda m, d: tables.cell(m, d, metric),
        )
        for family, by_row in found.items()
    ]


def failed(found: tables.Shares, name: str) -> Figure | None:
    """The share of failed runs against the swept setting `name`; None where no run failed or nothing was swept."""
    numbers = tables.failures(found)
    swept = {
        label: {
            place: (100 * bad / runs, 0.0) for place, (bad, runs) in counts.items() if place != tables.ALL
        }
        for label, counts in found.items()
    }
    swept = {label: levels for label, levels in swept.items() if levels}
    if not swept or numbers is None:
        return None
    one = _levels(
        f"Failed runs against {name}", name, "failed runs (%)", swept, lambda m, _: f"{m:.0f}", (-4.0, 104.0)
    )
    caption = "Share of the runs at each value; what counts as failed stands with the table."
    return Figure(one.title, caption, one.draw, numbers, one.height)


def _levels(
    title: str,
    place: str,
    words: str,
    curves: Mapping[str, Mapping[float, tuple[float, float]]],
    cell: Callable[[float, float], str],
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Means with bars of one standard deviation against a level, a line for every row; `cell` prints both in the table."""
    places = sorted({level for own in curves.values() for level in own})
    means = [value for own in curves.values() for value, _ in own.values()]

    def draw(part: FigureBase) -> None:
        panel = part.subplots()
        for row, look in looks(list(curves)).items():
            own = curves[row]
            order = sorted(own)
            line(panel, {level: own[level][0] for level in order}, look, row, marker=look.marker)
            heights = [own[level][0] for level in order]
            panel.errorbar(
                order,
                heights,
                [own[level][1] for level in order],
                fmt="none",
                ecolor=look.colour,
                elinewidth=0.9,
            )
            for level in order:
                (drawn,) = panel.plot(
                    [level], [own[level][0]], linestyle="none", marker="o", markersize=11, alpha=0, color=INK
                )
                tip(drawn, f"{row}, {place} {level:g}: {cell(*own[level])}")
        at_values(panel.xaxis, place, places)
        scaled(panel.yaxis, words, means, "linear" if limits else None)
        if limits:
            panel.set_ylim(*limits)
        legend(part, panel)

    rows = tuple((f"{p:g}", *(cell(*own[p]) if p in own else "" for own in curves.values())) for p in places)
    return Figure(
        title,
        "Mean over seeds; bars are one standard deviation.",
        draw,
        Numbers(title, (place, *curves), rows),
        3.1 + legend_height(list(curves)),
    )


def _names(panel: Axes, names: Sequence[str]) -> None:
    """A vertical axis of names, the first on top."""
    panel.set_yticks(range(len(names)), list(names))
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(axis="y", visible=False)


# How training went.


def training(table: Table, metric: Mapping[str, Any]) -> list[Figure]:
    """Validation, of averaged weights too; loss, penalty; loss on training data; the size of optimiser steps."""
    return [
        figure
        for make in (_validation, _averaged, _loss, _penalty, _fit, _strict_steps, _residual_steps)
        for words, rows in _parts(table)
        if (figure := make(table, rows, metric, words)) is not None
    ]


def equivariance(table: Table, metric: Mapping[str, Any]) -> list[Figure]:
    """The equivariance error over training; none where no run measured it."""
    found = [_equivariance(table, rows, metric, words) for words, rows in _parts(table)]
    return [figure for figure in found if figure is not None]


def _parts(table: Table) -> list[tuple[str, list[str]]]:
    """(words for titles, rows) of the figures that a kind of curve takes: one, or one for every method and model."""
    if len(table.rows) <= MOST_ROWS:
        return [("", list(table.rows))]
    found: dict[str, list[str]] = {}
    for row in table.rows:
        found.setdefault(" ".join(word for word in row.split() if "=" not in word), []).append(row)
    if len(found) > MOST_ROWS:  # many models: by method
        found = {}
        for row in table.rows:
            found.setdefault(row.split()[0], []).append(row)
    return [(f": {words}", rows) for words, rows in found.items()]


def _validation(table: Table, rows: Sequence[str], metric: Mapping[str, Any], words: str) -> Figure | None:
    return _states(
        table, rows, f"Validation: {heading(metric)}{words}", "val", heading(metric), metric,
        "Mean over seeds of the networks after projection (full lines; band: least to greatest seed) and as they are "
        "trained, with their residuals (thin, dotted). Where the two part, the network leans on what projection takes away.",
    )  # fmt: skip


def _averaged(table: Table, rows: Sequence[str], metric: Mapping[str, Any], words: str) -> Figure | None:
    return _states(
        table, rows, f"Validation of averaged weights: {heading(metric)}{words}", "averaged", heading(metric), metric,
        "The same of the weights' average over training, where a run keeps it.",
    )  # fmt: skip


def _fit(table: Table, rows: Sequence[str], metric: Mapping[str, Any], words: str) -> Figure | None:
    return _states(
        table, rows, f"Loss on training data{words}", "fit", "loss", {},
        "The task's loss on a fixed part of the training data, in evaluation mode and without augmentation, after projection "
        "(full lines) and as trained (thin, dotted); mean over seeds. Where the projected loss stays behind, the residuals have "
        "learnt what the strict weights were to learn.",
    )  # fmt: skip


def _equivariance(table: Table, rows: Sequence[str], metric: Mapping[str, Any], words: str) -> Figure | None:
    return _states(
        table, rows, f"Equivariance error over training{words}", "equivariance", "relative error", {},
        "Relative error in float64, the largest over a few group elements (the same throughout) on validation samples; mean "
        "over seeds. As trained (full lines): how far the network with its residuals is from equivariant. Projected (thin, "
        f"dotted), and networks that are equivariant throughout: rounding. {ROUNDING}",
        ("relaxed", "projected"),
    )  # fmt: skip


def _states(
    table: Table,
    rows: Sequence[str],
    title: str,
    prefix: str,
    words: str,
    metric: Mapping[str, Any],
    caption: str,
    states: tuple[str, str] = ("projected", "relaxed"),
) -> Figure | None:
    """Two states of the network over training, the first with full lines and a band over seeds; None where nothing was logged."""
    drawn: dict[
        str, tuple[str, bool, list[Course]]
    ] = {}  # label -> row, whether it is the first state, courses of the seeds
    for row in rows:
        relaxed = any(run.residuals for run in table.rows[row])
        for state in states if relaxed else states[:1]:
            found = table.courses(row, f"{prefix}/{state}")
            if prefix not in ("val", "averaged"):  # errors and losses, on logarithmic axes
                found = [above for one in found if (above := {e: v for e, v in one.items() if v > 0})]
            name = "as trained" if (prefix, state) == ("equivariance", "relaxed") else state
            if common(found):
                drawn[f"{row}, {name}" if relaxed else row] = (row, state == states[0], found)
    curves = {label: mean(found) for label, (_, _, found) in drawn.items()}
    values = [value for one in curves.values() for value in one.values()]
    if not values:
        return None
    linear = metric.get("higher_is_better") or min(values) <= 0

    def draw(part: FigureBase) -> None:
        panel = part.subplots()
        styles = looks(list(rows))
        for label, (row, first, found) in drawn.items():
            course = curves[label]
            style = {} if first else {"linestyle": ":", "linewidth": 1.0, "marker": None}
            line(panel, course, styles[row], label, len(drawn), **style)
            if first and len(found) > 1 and prefix == "val":
                kept = list(thinned(course, len(drawn)))
                low, high = ([side(one[e] for one in found) for e in kept] for side in (min, max))
                panel.fill_between(kept, low, high, color=styles[row].colour, alpha=0.15, linewidth=0)
        epochs(panel)
        scaled(panel.yaxis, words, values, "linear" if linear else "log")
        legend(part, panel)

    return Figure(title, caption, draw, curve_numbers(title, curves), 3.2 + legend_height(list(curves)))


def _loss(table: Table, rows: Sequence[str], metric: Mapping[str, Any], words: str) -> Figure | None:
    caption = (
        "The task's loss, without penalties, in the units of the loss; mean over each epoch and over seeds."
    )
    return _column(table, rows, f"Training loss{words}", "train/loss", caption)


def _penalty(table: Table, rows: Sequence[str], metric: Mapping[str, Any], words: str) -> Figure | None:
    caption = (
        "What the method adds to the loss: regularisation, or the Lagrangian's terms, which may be negative; mean over each "
        "epoch and over seeds."
    )
    return _column(table, rows, f"Penalty{words}", "train/penalty", caption)


def _strict_steps(table: Table, rows: Sequence[str], metric: Mapping[str, Any], words: str) -> Figure | None:
    return _column(table, rows, f"Size of a step of the strict weights{words}", "update/strict", STEPS)


def _residual_steps(
    table: Table, rows: Sequence[str], metric: Mapping[str, Any], words: str
) -> Figure | None:
    return _column(table, rows, f"Size of a step of the residuals' weights{words}", "update/residual", STEPS)


STEPS = (
    "Root mean square of the change of a weight in one of an epoch's last optimiser steps; mean over seeds."
)


def _column(table: Table, rows: Sequence[str], title: str, column: str, caption: str) -> Figure | None:
    """A logged column over training; None where none of the rows has it, or it is zero throughout."""
    curves = {row: course for row in rows if (course := mean(table.courses(row, column)))}
    values = [value for one in curves.values() for value in one.values()]
    if not any(values):
        return None

    def draw(part: FigureBase) -> None:
        panel = part.subplots()
        styles = looks(list(rows))
        for row, course in curves.items():
            line(panel, course, styles[row], row, len(curves))
        epochs(panel)
        scaled(panel.yaxis, title.partition(":")[0].lower(), values)
        legend(part, panel)

    return Figure(title, caption, draw, curve_numbers(title, curves), 2.8 + legend_height(list(curves)))


def curve_numbers(title: str, curves: Mapping[str, Mapping[int, float]], most: int = 12) -> Numbers:
    """A table of curves, a column for each, at `most` epochs."""
    places = sorted({p for one in curves.values() for p in one})
    every = max(-(-len(places) // most), 1)
    kept = sorted({*places[::every], *places[-1:]})
    rows = tuple((shown(p), *(shown(one.get(p)) for one in curves.values())) for p in kept)
    return Numbers(title, (EPOCH, *curves), rows)


# What strengths, multipliers, slacks and Lie derivatives did, layer by layer (CR, figure 3b).

KINDS = {
    "gamma": ("Strength gamma", "The strength of each residual; 0 is the equivariant network."),
    "size": (
        "|gamma| × norm of W",
        "gamma alone may be traded for the weight that it multiplies; this is their product, where the run recorded it (epochs "
        "that validate).",
    ),
    "multiplier": ("Multiplier", "The dual variable of each layer's constraint, as the loss used it."),
    "slack": ("Slack", "How far each layer's constraint was let out."),
    "lie": (
        "Lie derivative",
        "The Lie-derivative term of each residual's penalty, as the method computes it: how far its map is from equivariant.",
    ),
    "norm": ("Norm of the residual's output", "The norm term of each residual's penalty."),
}
"""Columns of metrics.csv (KIND/LAYER) -> title and meaning, in the order in which they are shown; "size" is made of two."""
SHADES = matplotlib.colormaps["cividis"]
"""Early to late layers; evenly spaced in lightness, for colour-blind readers too."""

Courses = dict[str, Course]
"""Layer -> its course, the mean over seeds."""


def courses(runs: Sequence[Run]) -> dict[str, Courses]:
    """Kind -> layer -> mean over the runs (seeds); kinds without a finite value are left out."""
    found: dict[str, Courses] = {}
    for run in runs:
        for column in run.rows[0] if run.rows else ():
            kind, _, layer = column.partition("/")
            if kind in KINDS and layer and layer not in found.get(kind, {}):
                several = [one for other in runs if (one := other.series(column))]
                found.setdefault(kind, {})[layer] = mean(several)
    measured = [run.sizes() for run in runs]
    layers = dict.fromkeys(layer for one in measured for layer in one)
    found["size"] = {layer: mean([one[layer] for one in measured if one.get(layer)]) for layer in layers}
    kept = {kind: {layer: one for layer, one in by_layer.items() if one} for kind, by_layer in found.items()}
    return {kind: kept[kind] for kind in KINDS if kept.get(kind)}


def strengths(label: str, runs: Sequence[Run]) -> list[Figure]:
    """For every kind that the runs of one row recorded, curves of all layers above a heat map of layers by time."""
    seeds = sum(bool(run.rows) for run in runs)
    note = f"Mean over {seeds} seeds." if seeds > 1 else "One seed."
    return [_by_layer(label, kind, found, note) for kind, found in courses(in_curves(runs)).items()]


def _by_layer(label: str, kind: str, by_layer: Courses, note: str) -> Figure:
    name, meaning = KINDS[kind]
    first, *others = by_layer.values()
    alike = bool(others) and all(one == first for one in others)
    drawn = {"all layers": first} if alike else by_layer
    said = "Every layer has the same." if alike else "Dark lines are early layers, bright ones late."
    at = common(list(by_layer.values()))
    map_height = 0.6 + 0.15 * len(by_layer) if len(at) > 1 and not alike else 0.0

    def draw(part: FigureBase) -> None:
        panels = part.subplots(
            1 + bool(map_height), 1, squeeze=False, height_ratios=[2.3, map_height][: 1 + bool(map_height)]
        )
        panel = panels[0][0]
        for index, (layer, course) in enumerate(drawn.items()):
            shade = SHADES(0.25 + 0.6 * index / max(len(drawn) - 1, 1))
            look = Look(INK if alike else matplotlib.colors.to_hex(shade), "-", "o")
            line(
                panel,
                course,
                look,
                layer,
                len(drawn),
                linewidth=1.2,
                **({} if len(course) <= FEW else {"marker": None}),
            )
        epochs(panel)
        scaled(panel.yaxis, name, [value for one in drawn.values() for value in one.values()])
        if map_height:
            _heat(part, panels[1][0], kind, by_layer)

    return Figure(
        f"{name}: {label}",
        f"{meaning} {note} {said}{' Below: every layer by time, the first layer on top.' if map_height else ''}",
        draw,
        _heat_numbers(f"{name}: {label}", by_layer, at),
        2.6 + map_height,
    )


def _heat(part: FigureBase, panel: Axes, kind: str, by_layer: Courses) -> None:
    """Layer by time: logarithmic colours where values span a lot, blue and orange around zero."""
    at = common(list(by_layer.values()))
    kept = list(thinned(dict.fromkeys(at, 0.0), len(by_layer)))
    values = [[one[epoch] for epoch in kept] for one in by_layer.values()]
    flat = [value for row in values for value in row]
    norm, colours = Normalize(min(flat), max(flat)), SHADES
    if min(flat) < 0:
        norm, colours = Normalize(-max(map(abs, flat)), max(map(abs, flat))), DIVERGING
    elif kind != "gamma" and spans(flat) == "log":
        norm = LogNorm(min(flat), max(flat))
    drawn = panel.imshow(
        values, aspect="auto", interpolation="nearest", cmap=colours, norm=norm,
        extent=(kept[0] - 0.5, kept[-1] + 0.5, len(by_layer) - 0.5, -0.5),
    )  # fmt: skip
    names = [layer if len(layer) <= 26 else f"{layer[:12]}…{layer[-12:]}" for layer in by_layer]
    panel.set_yticks(range(len(by_layer)), names, fontsize=7)
    panel.grid(visible=False)
    epochs(panel)
    bar = part.colorbar(drawn, ax=panel, pad=0.01)
    if isinstance(norm, LogNorm):
        bar.ax.yaxis.set_major_formatter(lambda value, _: power(value))
        bar.ax.yaxis.set_minor_formatter(lambda value, _: "")


def _heat_numbers(title: str, by_layer: Courses, at: Sequence[int]) -> Numbers:
    """A row for every layer: first, middle and last epoch, least and greatest value."""
    if not at:
        return Numbers(title, ("layer",), tuple((layer,) for layer in by_layer))
    places = sorted({at[0], at[len(at) // 2], at[-1]})
    head = ("layer", *(f"{EPOCH} {place:g}" for place in places), "least", "greatest")
    rows = tuple(
        (layer, *(shown(one[p]) for p in places), shown(min(one.values())), shown(max(one.values())))
        for layer, one in by_layer.items()
    )
    return Numbers(title, head, rows)


def gammas(label: str, runs: Sequence[Run], look: Look) -> Figure | None:
    """gamma of every residual and seed over training, beside |gamma| times the norm of W where it was recorded."""
    found = [run.series(f"gamma/{key}") for run in runs for key in run.residuals]
    if not found:
        return None
    sized = [one for run in runs for one in run.sizes().values()]

    def draw(part: FigureBase) -> None:
        panels = part.subplots(1, 1 + bool(sized), squeeze=False)[0]
        for panel, several, words in zip(
            panels, (found, sized), ("gamma", "|gamma| × norm of W"), strict=False
        ):
            for course in several:
                kept = thinned(course, len(several))
                panel.plot(list(kept), list(kept.values()), color=look.colour, linewidth=0.7, alpha=0.6)
            panel.axhline(0, color=SOFT, linewidth=0.6)
            panel.set_title(words)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
            panel.set_xlabel("epoch")

    title = f"{label}: a line for every residual and seed"
    by_layer = courses(runs)["gamma"]
    return Figure(
        title, KINDS["gamma"][1], draw, _heat_numbers(title, by_layer, common(list(by_layer.values()))), 2.1
    )


# Pictures: the same figures in files.


def curves_picture(table: Table, metric: Mapping[str, Any]) -> list[Figure]:
    """The figures of curves.png: validation, loss on training data, and the strengths of every row that has some."""
    rows = list(table.rows)
    parts = _parts(table)
    found = [make(table, own, metric, words) for make in (_validation, _fit) for words, own in parts]
    styles = looks(rows)
    if len(rows) <= MOST_ROWS:
        found += [gammas(row, in_curves(table.rows[row]), styles[row]) for row in rows]
    return [figure for figure in found if figure is not None]


def chapter_pictures(chapter: Chapter) -> dict[str, tuple[list[Figure], int]]:
    """Name of a picture -> its figures and how many stand side by side: curves, layers of every row, sweep, conditions."""
    table = Table(chapter.runs)
    found: dict[str, tuple[list[Figure], int]] = {"curves": (curves_picture(table, chapter.metric), 2)}
    for label, runs in table.rows.items():
        if any(run.residuals for run in runs):
            found[f"layers-{label}"] = (strengths(label, runs), 2)
    found["sweep"] = (sweeps(chapter.finished, chapter.metric), 3)
    found["conditions"] = (further_conditions(tables.levels(table), chapter.metric), 4)
    return {name: (figures, columns) for name, (figures, columns) in found.items() if figures}
