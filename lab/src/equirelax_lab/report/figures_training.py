"""Curves of training: validation, projected and not, and the loss."""

from __future__ import annotations

from collections.abc import Mapping

from equirelax_lab.report.figures import (
    Figure,
    Points,
    Trace,
    axis,
    band,
    common,
    curve_numbers,
    legend_height,
    line,
    logarithmic,
    mean,
    scaled,
)
from equirelax_lab.report.picture import gamma_columns, series
from equirelax_lab.report.runs import Chapter, Run
from equirelax_lab.tasks.task import heading

EPOCH = "epoch"
MOST_LABELS = 9
"""In one figure of curves."""
Labelled = Mapping[str, list[Run]]


def parts(chapter: Chapter) -> list[tuple[str, dict[str, list[Run]]]]:
    """(words for titles, label -> runs) of the figures that a kind of curve takes: one, or where there are more labels than
    the eye tells apart, one for every method.
    """
    every = chapter.in_curves()
    if len(every) <= MOST_LABELS:
        return [("", every)]
    found: dict[str, dict[str, list[Run]]] = {}
    several = len({run.result["model"] for run in chapter.runs}) > 1
    for label, runs in every.items():
        kind = [runs[0].result["method"], *([runs[0].result["model"]] if several else [])]
        found.setdefault(" ".join(kind), {})[label] = runs
    return [(f": {method}", own) for method, own in found.items()]


def validation(chapter: Chapter) -> list[Figure]:
    """The validation metric of the projected networks (full lines, with a band) and of the relaxed ones (dotted); of the
    averaged weights too, where a run keeps them.
    """
    kinds = (("val", "Validation"), ("averaged", "Validation of averaged weights"))
    found = [
        _validation(chapter, prefix, name, words, own)
        for prefix, name in kinds
        for words, own in parts(chapter)
    ]
    return [figure for figure in found if figure is not None]


def _validation(chapter: Chapter, prefix: str, what: str, title: str, labelled: Labelled) -> Figure | None:
    traces: list[Trace] = []
    curves: dict[str, Mapping[float, float]] = {}
    for index, (label, runs) in enumerate(labelled.items()):
        relaxed = any(gamma_columns(run.rows) for run in runs)
        for kind in ("projected", "relaxed") if relaxed else ("projected",):
            found: list[Points] = [one for run in runs if (one := series(run.rows, f"{prefix}/{kind}"))]
            name = f"{label}, {kind}" if relaxed else label
            if not common(found):
                continue
            curves[name] = mean(found)
            if kind == "relaxed":
                traces.append(line(name, curves[name], index, legendgroup=name))
                traces[-1]["line"] = {**traces[-1]["line"], "dash": "dot", "width": 1.3}
                continue
            if len(found) > 1:
                low, high = ({e: side(one[e] for one in found) for e in curves[name]} for side in (min, max))
                traces.append(band(low, high, index, name))
            traces.append(line(name, curves[name], index, legendgroup=name))
            traces[-1]["line"] = {**traces[-1]["line"], "dash": "solid"}
    if not curves:
        return None
    words, values = heading(chapter.metric), [value for one in curves.values() for value in one.values()]
    lower = not chapter.metric.get("higher_is_better") and min(values) > 0
    return Figure(
        f"{what}: {heading(chapter.metric)}{title}",
        "Mean over seeds of the networks after projection (full lines; band: least to greatest seed) and as they are "
        "trained, with their residuals (dotted). Where the two part, the network leans on what projection takes away.",
        tuple(traces),
        {"xaxis": axis(EPOCH), "yaxis": logarithmic(words, values) if lower else axis(words)},
        curve_numbers(EPOCH, curves),
        legend_height(traces, 430),
    )


def equivariance(chapter: Chapter) -> list[Figure]:
    """The equivariance error over training, as trained (full lines) and projected (dotted); none where no run measured it."""
    found = [_equivariance(words, own) for words, own in parts(chapter)]
    return [figure for figure in found if figure is not None]


def _equivariance(title: str, labelled: Labelled) -> Figure | None:
    traces: list[Trace] = []
    curves: dict[str, Mapping[float, float]] = {}
    for index, (label, runs) in enumerate(labelled.items()):
        relaxed = any(gamma_columns(run.rows) for run in runs)
        for kind, style in (
            (("relaxed", "solid"), ("projected", "dot")) if relaxed else (("relaxed", "solid"),)
        ):
            found = over_seeds(runs, f"equivariance/{kind}")
            above = {epoch: value for epoch, value in found.items() if value > 0}
            if not above:
                continue
            name = f"{label}, {'as trained' if kind == 'relaxed' else kind}" if relaxed else label
            curves[name] = above
            traces.append(line(name, above, index))
            traces[-1]["line"] = {**traces[-1]["line"], "dash": style}
            traces[-1]["mode"] = "lines" if len(above) > 1 else "markers"
    if not curves:
        return None
    words, values = "relative error", [value for one in curves.values() for value in one.values()]
    many = max(values) > 1e6 * min(values)
    powers = axis(words, "log", exponentformat="power", dtick=2)
    return Figure(
        f"Equivariance error over training{title}",
        "Relative error in float64, the largest over a few group elements (the same throughout) on validation samples; mean "
        "over seeds. As trained (full lines): how far the network with its residuals is from equivariant. Projected (dotted), "
        "and networks that are equivariant throughout: rounding, near 1e-15.",
        tuple(traces),
        {"xaxis": axis(EPOCH), "yaxis": powers if many else logarithmic(words, values)},
        curve_numbers(EPOCH, curves),
        legend_height(traces, 400),
    )


def losses(chapter: Chapter) -> list[Figure]:
    """The training loss, and the penalty where a method has one; means over epochs and seeds."""
    kinds = (
        (
            "train/loss",
            "Training loss",
            "The task's loss, without penalties, in the units of the loss; mean over each epoch and over seeds.",
        ),
        (
            "train/penalty",
            "Penalty",
            "What the method adds to the loss: regularisation, or the Lagrangian's terms, which may be negative; mean over "
            "each epoch and over seeds.",
        ),
    )
    found = [
        _column(own, column, title + words, caption)
        for column, title, caption in kinds
        for words, own in parts(chapter)
    ]
    return [figure for figure in found if figure is not None]


def fit(chapter: Chapter) -> list[Figure]:
    """The loss of the projected and of the relaxed networks on the same part of the training data."""
    found = [_fit(words, own) for words, own in parts(chapter)]
    return [figure for figure in found if figure is not None]


def _fit(title: str, labelled: Labelled) -> Figure | None:
    traces: list[Trace] = []
    curves: dict[str, Mapping[float, float]] = {}
    for index, (label, runs) in enumerate(labelled.items()):
        relaxed = any(gamma_columns(run.rows) for run in runs)
        for kind, style in (
            (("projected", "solid"), ("relaxed", "dot")) if relaxed else (("projected", "solid"),)
        ):
            found = {epoch: value for epoch, value in over_seeds(runs, f"fit/{kind}").items() if value > 0}
            if not found:
                continue
            name = f"{label}, {kind}" if relaxed else label
            curves[name] = found
            traces.append(line(name, found, index))
            traces[-1]["line"] = {**traces[-1]["line"], "dash": style}
    if not curves:
        return None
    values = [value for one in curves.values() for value in one.values()]
    return Figure(
        f"Loss on training data{title}",
        "The task's loss on a fixed part of the training data, in evaluation mode and without augmentation, after projection "
        "(full lines) and as trained (dotted); mean over seeds. Where the projected loss stays behind, the residuals have "
        "learnt what the strict weights were to learn.",
        tuple(traces),
        {"xaxis": axis(EPOCH), "yaxis": logarithmic("loss", values)},
        curve_numbers(EPOCH, curves),
        legend_height(traces, 400),
    )


def updates(chapter: Chapter) -> list[Figure]:
    """How far an optimiser step moves the strict weights, and those of the residuals."""
    kinds = (
        ("update/strict", "Size of a step of the strict weights"),
        ("update/residual", "Size of a step of the residuals' weights"),
    )
    caption = "Root mean square of the change of a weight in one of an epoch's last optimiser steps; mean over seeds."
    found = [
        _column(own, column, title + words, caption)
        for column, title in kinds
        for words, own in parts(chapter)
    ]
    return [figure for figure in found if figure is not None]


def _column(labelled: Labelled, column: str, title: str, caption: str) -> Figure | None:
    traces: list[Trace] = []
    curves: dict[str, Mapping[float, float]] = {}
    for index, (label, runs) in enumerate(labelled.items()):
        if found := over_seeds(runs, column):
            curves[label] = found
            traces.append(line(label, found, index))
    values = [v for one in curves.values() for v in one.values()]
    if not any(values):  # a penalty of zero throughout is none
        return None
    layout = {"xaxis": axis(EPOCH), "yaxis": scaled(title.lower(), values)}
    return Figure(
        title, caption, tuple(traces), layout, curve_numbers(EPOCH, curves), legend_height(traces, 360)
    )


def over_seeds(runs: list[Run], column: str) -> dict[float, float]:
    """Epoch (from 1) -> mean over the runs that have the column, at the epochs that all of those have."""
    return mean([one for run in runs if (one := series(run.rows, column))])
