"""Symmetry scores of finished runs: their tables, and a chart of bars, layer by layer."""

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
from equirelax_lab.report.rows import labels
from equirelax_lab.report.statistics import spread

COLUMNS = 3
"""Runs side by side."""
DEAD_ZONE, LARGE = 4, 3
"""c of the dead zone c/n that `SymmetryFollowing` has by default, and the z above which noise is rare."""


def score_table(scores: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a row for every run: over all its layers, and the layer with the largest r.

    Args:
        scores: Scores from `equirelax symmetry --score`: each has "run", "metric", "value" (on the test set), "examples", "whole"
            and "layers".
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


def over_seeds(scores: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The runs that differ only in their seed, under a label of their method and the settings that distinguish them.

    Args:
        scores: As for `score_table`, each with "config".
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    results = [{**one["config"], "config": one["config"]} for one in scores]
    for label, one in zip(labels(results), scores, strict=True):
        found.setdefault(label, []).append(one)
    return found


def seeds_table(scores: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a row for all runs that differ only in their seed: mean and standard deviation of r and z over all
    layers, and how often they count as an asymmetry.

    Args:
        scores: As for `over_seeds`. If a run has "draws", they replace its score, each of "drawn" examples.
    """
    head = ("runs", "seeds", "examples", "scores", "r", "z", f"r > {DEAD_ZONE}/n", f"z > {LARGE}")
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * 7]
    for label, runs in over_seeds(scores).items():
        drawn = [draw for run in runs for draw in run.get("draws", [])]
        wholes = drawn or [run["whole"] for run in runs]
        count = runs[0]["drawn"] if drawn else runs[0]["examples"]
        ratios, zs = [one["ratio"] for one in wholes], [one["z"] for one in wholes]
        cells = (
            label,
            str(len(runs)),
            str(count),
            str(len(wholes)),
            _spread(ratios, 4),
            _spread(zs, 1),
            f"{sum(ratio > DEAD_ZONE / count for ratio in ratios)}",
            f"{sum(z > LARGE for z in zs)}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    found = spread(values)
    return f"{found.mean:.{digits}f}" + ("" if found.std is None else f" ± {found.std:.{digits}f}")


def panels_over_seeds(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runs that differ only in their seed as one panel for `draw_scores`: means over them, and "spread" of each layer.

    Args:
        scores: As for `over_seeds`.
    """
    panels = []
    for label, runs in over_seeds(scores).items():
        layers = []
        for same in zip(*(run["layers"] for run in runs), strict=True):
            found = spread([one["ratio"] for one in same])
            layers.append({"key": same[0]["key"], "ratio": found.mean, "spread": found.std or 0.0})
        z = spread([run["whole"]["z"] for run in runs]).mean
        name = f"{label}, {len(runs)} seeds" if len(runs) > 1 else runs[0]["run"]
        panels.append({"run": name, "examples": runs[0]["examples"], "layers": layers, "whole": {"z": z}})
    return panels


def layer_table(score: Mapping[str, Any]) -> str:
    """A Markdown table of one run's layers."""
    lines = ["| layer | s | r | z |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| `{one['key'] or '(model)'}` | {one['score']:.3g} | {one['ratio']:.4f} | {one['z']:.2f} |"
        for one in score["layers"]
    ]
    return "\n".join(lines)


def draw_scores(path: Path, scores: Sequence[Mapping[str, Any]], again: str) -> None:
    """Write a PNG: r of every layer as a bar, a panel for every run, all on one scale; a dotted line marks 4/n.

    Args:
        path: The file.
        scores: As for `score_table`, or from `panels_over_seeds`, whose bars have a line of one standard deviation each way.
        again: The command that writes the picture again.
    """
    columns = 2 if len(scores) == 4 else min(COLUMNS, len(scores))
    rows = math.ceil(len(scores) / columns)
    tallest = max(len(one["layers"]) for one in scores)
    ends = [
        layer["ratio"] + side * layer.get("spread", 0.0)
        for one in scores
        for layer in one["layers"]
        for side in (-1, 1)
    ]
    largest = max(*ends, *(min(DEAD_ZONE / one["examples"], 1.0) for one in scores))
    lowest = min(0.0, *ends)
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
    spreads = [one.get("spread", 0.0) for one in layers]
    panel.barh(
        places,
        [one["ratio"] for one in layers],
        xerr=spreads if any(spreads) else None,
        height=0.66,
        color=layer_colours(len(layers)),
        error_kw={"ecolor": SOFT, "elinewidth": 1.0},
    )
    panel.set_yticks(places, [one["key"] or "(model)" for one in layers], fontsize=7)
    panel.invert_yaxis()
    panel.axvline(0, color=INK, linewidth=0.6)
    panel.axvline(DEAD_ZONE / score["examples"], color=SOFT, linewidth=0.9, linestyle=":")
    panel.set_title(score["run"], fontsize=8)
    panel.set_xlabel(
        f"r (dotted: 4/n, n = {score['examples']}; all layers z = {score['whole']['z']:.1f})", fontsize=8
    )
    panel.grid(axis="y", visible=False)
