"""What strengths, multipliers, slacks and Lie derivatives did: a curve for every layer, and layer by time (CR, figure 3b)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from equirelax_lab.report.figures import (
    DIVERGING,
    Figure,
    Numbers,
    Trace,
    axis,
    common,
    curve_numbers,
    line,
    mean,
    plain,
    rounded,
    scaled,
    shown,
    spans,
    thinned,
)
from equirelax_lab.report.figures_training import EPOCH, over_seeds
from equirelax_lab.report.picture import sizes
from equirelax_lab.report.runs import Run

KINDS = {
    "gamma": "Strength gamma",
    "size": "|gamma| × norm of W",
    "multiplier": "Multiplier",
    "slack": "Slack",
    "lie": "Lie derivative",
    "norm": "Norm of the residual's output",
}
"""Columns of metrics.csv (KIND/LAYER), in the order in which they are shown; "size" is made of two."""
MEANING = {
    "gamma": "The strength of each residual; 0 is the equivariant network.",
    "size": "gamma alone may be traded for the weight that it multiplies: this is what the two make together, where the run "
    "recorded it (epochs that validate).",
    "multiplier": "The dual variable of each layer's constraint, as the loss used it.",
    "slack": "How far each layer's constraint was let out.",
    "lie": "The Lie-derivative term of each residual's penalty, as the method computes it: how far its map is from "
    "equivariant.",
    "norm": "The norm term of each residual's penalty.",
}
CIVIDIS = ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838")
"""Early to late layers; evenly spaced in lightness, for colour-blind readers too."""
DASHES = ("solid", "dash", "dot")

Courses = dict[str, dict[float, float]]
"""Layer -> epoch (from 1) -> mean over seeds."""


def courses(runs: list[Run]) -> dict[str, Courses]:
    """Kind -> layer -> epoch -> mean over the runs (seeds); kinds without a finite value are left out."""
    found: dict[str, Courses] = {}
    for run in runs:
        for column in run.rows[0] if run.rows else ():
            kind, _, layer = column.partition("/")
            if kind in KINDS and layer and layer not in found.get(kind, {}):
                found.setdefault(kind, {})[layer] = over_seeds(runs, column)
    measured = [sizes(run.rows) for run in runs]
    layers = dict.fromkeys(layer for one in measured for layer in one)
    found["size"] = {layer: mean([one[layer] for one in measured if one.get(layer)]) for layer in layers}
    kept = {kind: {layer: one for layer, one in by_layer.items() if one} for kind, by_layer in found.items()}
    return {kind: kept[kind] for kind in KINDS if kept.get(kind)}


def strengths(label: str, runs: list[Run]) -> list[Figure]:
    """For every kind that the runs of one label recorded a figure of curves and a heat map."""
    found: list[Figure] = []
    seeds = sum(bool(run.rows) for run in runs)
    for kind, by_layer in courses(runs).items():
        note = f"{MEANING[kind]} {'Mean over ' + str(seeds) + ' seeds.' if seeds > 1 else 'One seed.'}"
        found += [_curves(label, kind, by_layer, note), _heat(label, kind, by_layer, note)]
    return found


def _curves(label: str, kind: str, by_layer: Courses, note: str) -> Figure:
    same = _all_alike(by_layer)
    drawn = {"all layers": next(iter(by_layer.values()))} if same else by_layer
    traces: list[Trace] = []
    for index, (layer, points) in enumerate(drawn.items()):
        traces.append(line(layer, points, 0, len(drawn)))
        shade = _shade(index, len(drawn))
        traces[-1]["line"] = {"color": shade, "dash": DASHES[index % len(DASHES)], "width": 1.6}
        traces[-1]["showlegend"] = len(drawn) <= 8
    values = [value for one in drawn.values() for value in one.values()]
    words = "Every layer has the same." if same else "Dark lines are early layers, bright ones late."
    if max(map(len, (one for one in drawn.values())), default=0) == 1:
        for trace in traces:
            trace["mode"] = "markers"
    return Figure(
        f"{KINDS[kind]} over training: {label}",
        f"{note} {words}",
        tuple(traces),
        {"xaxis": axis(EPOCH), "yaxis": scaled(KINDS[kind], values)},
        curve_numbers(EPOCH, drawn),
    )


def _all_alike(by_layer: Courses) -> bool:
    """Whether a schedule drives all layers: more than one, with the same values."""
    first, *others = by_layer.values()
    return bool(others) and all(one == first for one in others)


def _heat(label: str, kind: str, by_layer: Courses, note: str) -> Figure:
    """Rows are layers, the model's first on top; columns are epochs."""
    epochs = list(thinned(dict.fromkeys(common(list(by_layer.values())), 0.0), len(by_layer)))
    values = [[one[epoch] for epoch in epochs] for one in by_layer.values()]
    flat = [value for row in values for value in row]
    logarithmic = spans(flat) == "log" and kind != "gamma"
    z = [[math.log10(value) if logarithmic else value for value in row] for row in values]
    trace: Trace = {
        "type": "heatmap",
        "x": epochs,
        "y": [plain(layer) for layer in by_layer],
        "z": [[rounded(value) for value in row] for row in z],
        "hovertemplate": f"%{{y}}<br>{EPOCH} %{{x}}: %{{{'customdata' if logarithmic else 'z'}}}<extra></extra>",
        "colorscale": "Cividis",
        "colorbar": {
            "thickness": 12,
            "title": {"text": KINDS[kind], "side": "right"},
            **_ticks(z, logarithmic),
        },
    }
    if logarithmic:
        trace["customdata"] = [[rounded(value) for value in row] for row in values]
    if min(flat, default=0.0) < 0:
        largest = max(abs(value) for value in flat)
        trace |= {"colorscale": DIVERGING, "zmin": -rounded_up(largest), "zmax": rounded_up(largest)}
    layout = {
        "xaxis": axis(EPOCH),
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category", "title": {"text": ""}},
    }
    scale = " The colours are logarithmic." if logarithmic else ""
    return Figure(
        f"{KINDS[kind]}, layer by time: {label}",
        f"{note} The model's first layer is on top.{scale}",
        (trace,),
        layout,
        heat_numbers(by_layer, epochs),
        max(300, 18 * len(by_layer) + 130),
    )


def rounded_up(value: float) -> float:
    """A little more than `value`, to three digits: a limit of a colour scale that hides nothing."""
    return float(f"{1.005 * value:.3g}")


def _ticks(z: Sequence[Sequence[float]], logarithmic: bool) -> dict[str, Any]:
    """Powers of ten on the colour bar of a logarithmic heat map."""
    flat = [value for row in z for value in row]
    if not logarithmic:
        return {}
    powers = list(range(math.floor(min(flat)), math.ceil(max(flat)) + 1))
    return {"tickvals": powers, "ticktext": [f"{10.0**power:g}" for power in powers]}


def heat_numbers(by_layer: Mapping[str, Mapping[float, float]], epochs: Sequence[float]) -> Numbers:
    """A row for every layer: first, middle and last epoch, least and greatest value."""
    if not epochs:
        return Numbers(("layer",), tuple((layer,) for layer in by_layer))
    places = sorted({epochs[0], epochs[len(epochs) // 2], epochs[-1]})
    head = ("layer", *(f"{EPOCH} {place:g}" for place in places), "least", "greatest")
    rows = tuple(
        (layer, *(shown(one[p]) for p in places), shown(min(one.values())), shown(max(one.values())))
        for layer, one in by_layer.items()
    )
    return Numbers(head, rows)


def _shade(index: int, count: int) -> str:
    """The `index`-th of `count` colours from `CIVIDIS`, the ends left out: both themes must show them."""
    place = 0.12 + 0.76 * (index / max(count - 1, 1))
    low = min(int(place * (len(CIVIDIS) - 1)), len(CIVIDIS) - 2)
    share = place * (len(CIVIDIS) - 1) - low
    pair = [[int(CIVIDIS[low + side][i : i + 2], 16) for i in (1, 3, 5)] for side in (0, 1)]
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(*pair, strict=True))
