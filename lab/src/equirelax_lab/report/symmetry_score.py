"""Symmetry scores of finished runs: their table, and a chart of bars, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from equirelax_lab.report.drawing import styled, write_png
from equirelax_lab.report.lines import layer_colours
from equirelax_lab.report.looks import INK, SOFT

COLUMNS = 3
"""Runs side by side."""


def score_table(scores: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table with a row for every run: over all its layers, and the layer with the largest r.

    Args:
        scores: From `equirelax symmetry --score`: each has "run", "metric", "value" (on the test set), "examples", "whole" and
            "layers".
    """
    head = ("run", "examples", "r", "z", "largest r", "of layer", "test, as deployed")
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * 4 + " --- | --- |"]
    for one in scores:
        top = max(one["layers"], key=lambda layer: layer["ratio"])
        cells = (
            one["run"],
            str(one["examples"]),
            f"{one['whole']['ratio']:.4f}",
            f"{one['whole']['z']:.1f}",
            f"{top['ratio']:.4f}",
            f"`{top['key'] or '(model)'}`",
            f"{one['metric']}: {one['value']:.4g}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def layer_table(score: Mapping[str, Any]) -> str:
    """A markdown table of one run's layers."""
    lines = ["| layer | s | r | z |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| `{one['key'] or '(model)'}` | {one['score']:.3g} | {one['ratio']:.4f} | {one['z']:.2f} |"
        for one in score["layers"]
    ]
    return "\n".join(lines)


def draw_scores(path: Path, scores: Sequence[Mapping[str, Any]], again: str) -> None:
    """Write a PNG: r of every layer as a bar, a panel for every run, all on one scale; a dotted line marks 4/n.

    Args:
        path: Where to.
        scores: As for `score_table`.
        again: The command that writes the picture again.
    """
    columns = min(COLUMNS, len(scores))
    rows = math.ceil(len(scores) / columns)
    tallest = max(len(one["layers"]) for one in scores)
    largest = max(
        [layer["ratio"] for one in scores for layer in one["layers"]]
        + [4 / one["examples"] for one in scores]
    )
    lowest = min(0.0, *(layer["ratio"] for one in scores for layer in one["layers"]))
    with styled():
        figure = Canvas(figsize=(4.2 * columns + 0.6, rows * (0.2 * tallest + 1.3)), layout="constrained")
        for index, one in enumerate(scores):
            panel = figure.add_subplot(rows, columns, index + 1)
            _bars(panel, one)
            panel.set_xlim(1.08 * lowest, 1.08 * largest)
        write_png(path, figure, again)


def _bars(panel: Axes, score: Mapping[str, Any]) -> None:
    layers = score["layers"]
    places = range(len(layers))
    panel.barh(places, [one["ratio"] for one in layers], height=0.66, color=layer_colours(len(layers)))
    panel.set_yticks(places, [one["key"] or "(model)" for one in layers], fontsize=7)
    panel.invert_yaxis()
    panel.axvline(0, color=INK, linewidth=0.6)
    panel.axvline(4 / score["examples"], color=SOFT, linewidth=0.9, linestyle=":")
    panel.set_title(score["run"], fontsize=8)
    panel.set_xlabel(
        f"r (dotted: 4/n, n = {score['examples']}; all layers z = {score['whole']['z']:.1f})", fontsize=8
    )
    panel.grid(axis="y", visible=False)
