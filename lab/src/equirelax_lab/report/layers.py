"""Figures of strengths, multipliers, slacks and Lie derivatives over training, layer by layer (CR, figure 3b)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import FigureBase

from equirelax_lab.report.axes import epochs, power, scaled, spans
from equirelax_lab.report.drawing import Figure
from equirelax_lab.report.lines import SHADES, layer_colours, line, panels, panels_height, thinned
from equirelax_lab.report.looks import BLUE, INK, RED, SOFT, Look, looks
from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.runs import Run
from equirelax_lab.report.statistics import shown
from equirelax_lab.report.table import Course, Table, common, in_curves, mean

DIVERGING = LinearSegmentedColormap.from_list("diverging", [BLUE, "#f7f7f7", RED])
"""Two hues that colour-blind readers can tell apart, pale at zero."""

KINDS = {
    "gamma": ("Strength gamma", "The strength of each residual; 0 is the equivariant network."),
    "size": (
        "|gamma| × norm of W",
        "gamma and the weight that it multiplies may be traded for each other; this is their product, if the run recorded it "
        "(epochs that validate).",
    ),
    "multiplier": ("Multiplier", "The dual variable of each layer's constraint, as used by the loss."),
    "slack": ("Slack", "How far each layer's constraint was relaxed."),
    "lie": (
        "Lie derivative",
        "The Lie-derivative term of each residual's penalty, as the method computes it: how far its map is from equivariant.",
    ),
    "norm": ("Norm of the residual's output", "The norm term of each residual's penalty."),
}
"""Columns of metrics.csv (KIND/LAYER) -> title and meaning, in the order in which they are shown; "size" is computed from two."""
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
    """Curves of all layers above a heat map of layers by time, for every kind that the runs of one row recorded."""
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
        grid = part.subplots(
            1 + bool(map_height), 1, squeeze=False, height_ratios=[2.3, map_height][: 1 + bool(map_height)]
        )
        panel = grid[0][0]
        colours = [INK] if alike else layer_colours(len(drawn))
        for colour, (layer, course) in zip(colours, drawn.items(), strict=True):
            line(panel, course, Look(colour, "-", "o"), layer, len(drawn), linewidth=1.2)
        epochs(panel)
        scaled(panel.yaxis, name, [value for one in drawn.values() for value in one.values()])
        if map_height:
            _heat(part, grid[1][0], kind, by_layer)

    return Figure(
        f"{name}: {label}",
        f"{meaning} {note} {said}{' Below: every layer by time, the first layer on top.' if map_height else ''}",
        draw,
        _heat_numbers(f"{name}: {label}", by_layer, at),
        2.6 + map_height,
    )


def _heat(part: FigureBase, panel: Axes, kind: str, by_layer: Courses) -> None:
    """Draw layer by time, with logarithmic colours if values span a wide range, blue and orange around zero."""
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


def _heat_numbers(title: str, by_layer: Courses, at: Sequence[int], named: str = "layer") -> Numbers:
    """A table with a row for every layer (or other item, `named`): first, middle and last epoch, least and greatest value."""
    if not at:
        return Numbers(title, (named,), tuple((layer,) for layer in by_layer))
    places = sorted({at[0], at[len(at) // 2], at[-1]})
    head = (named, *(f"epoch {place:g}" for place in places), "least", "greatest")
    rows = tuple(
        (layer, *(shown(one[p]) for p in places), shown(min(one.values())), shown(max(one.values())))
        for layer, one in by_layer.items()
    )
    return Numbers(title, head, rows)


MOST_ROWS = 9
"""Most rows in a picture of strengths; with more, the lines of one row could not be seen."""


def strengths_of_rows(table: Table) -> list[Figure]:
    """gamma of every residual and seed over training, and |gamma| times the norm of W if it was recorded: one panel per row."""
    shown_runs = {row: in_curves(runs) for row, runs in table.rows.items()}
    rows = {row: runs for row, runs in shown_runs.items() if any(run.residuals for run in runs)}
    if not rows or len(rows) > MOST_ROWS:
        return []
    gamma = {
        row: [run.series(f"gamma/{key}") for run in runs for key in run.residuals]
        for row, runs in rows.items()
    }
    size = {row: [one for run in runs for one in run.sizes().values()] for row, runs in rows.items()}
    kinds = (("gamma", gamma), ("size", {row: found for row, found in size.items() if found}))
    return [_every_residual(kind, list(table.rows), by_row) for kind, by_row in kinds if by_row]


def _every_residual(kind: str, rows: Sequence[str], by_row: dict[str, list[Course]]) -> Figure:
    """A panel for every row with a line for every residual and seed."""
    columns = 2 if len(by_row) in (2, 4) else 3

    def draw(part: FigureBase) -> None:
        styles = looks(rows)
        drawn = panels(part, list(by_row), columns, share=False, alone=True)
        for panel, (row, several) in zip(drawn, by_row.items(), strict=True):
            for course in several:
                look = Look(styles[row].colour, "-", styles[row].marker)
                line(panel, course, look, row, len(several), linewidth=0.7, alpha=0.6, markersize=3)
            panel.axhline(0, color=SOFT, linewidth=0.6)
        epochs(*drawn)

    name, meaning = KINDS[kind]
    title = f"{name}: a line for every residual and seed"
    means = {row: mean(several) for row, several in by_row.items()}
    numbers = _heat_numbers(title, means, common(list(means.values())), "mean of")
    return Figure(title, meaning, draw, numbers, panels_height(len(by_row), columns))
