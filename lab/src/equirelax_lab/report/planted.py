"""Tables and pictures of `equirelax planted`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from equirelax_lab.report.drawing import styled, write_png
from equirelax_lab.report.lines import layer_colours, legend, line
from equirelax_lab.report.looks import DASHES, MARKERS, SOFT, Look
from equirelax_lab.report.numbers import Numbers

TICKS = (0, 1e-3, 1e-2, 1e-1, 1)
"""Of gamma."""


def ratios_table(study: Mapping[str, Any]) -> Numbers:
    """A table: r of every layer of the strict networks, and the layer with the largest.

    Args:
        study: From `equirelax_lab.tasks.planted_asymmetry.run_planted`.
    """
    rows = []
    for run in study["strict"]:
        layers = run["score"]["layers"]
        top = max(layers, key=lambda layer: layer["ratio"])
        ratios = (f"{layer['ratio']:.4f}" for layer in layers)
        rows.append((run["planted"], *ratios, top["key"], f"{top['z']:.1f}", f"{run['loss'][-1]:.3f}"))
    keys = (layer["key"] for layer in study["strict"][0]["score"]["layers"])
    return Numbers("Planted", ("planted at", *keys, "largest r", "its z", "loss"), tuple(rows))


def gammas_table(study: Mapping[str, Any]) -> Numbers:
    """A table: where gammas that follow the score end, and what the networks' losses are."""
    strict = {run["planted"]: run["loss"][-1] for run in study["strict"]}
    rows = tuple(
        (
            run["planted"],
            *(f"{course[-1]:.3g}" for course in run["gammas"].values()),
            *(f"{loss:.3f}" for loss in (run["loss"], run["loss_strict"], strict[run["planted"]])),
        )
        for run in study["following"]
    )
    keys = (f"gamma {key}" for key in study["following"][0]["gammas"])
    losses = ("loss, deployed", "loss, gamma 0", "loss, strict")
    return Numbers("Planted following", ("planted, gammas following", *keys, *losses), rows)


def panels_of(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores of the strict networks, as `equirelax_lab.report.symmetry_score.draw_scores` takes them."""
    return [{"run": f"planted at {run['planted']}", **run["score"]} for run in study["strict"]]


def draw_courses(path: Path, study: Mapping[str, Any], again: str) -> None:
    """Write a PNG: r of the strict network's layers over its steps, and below it the gammas that follow r.

    Args:
        path: Where to.
        study: As for `ratios_table`.
        again: The command that writes the picture again.
    """
    strict = {run["planted"]: run for run in study["strict"]}
    following = study["following"]
    noise = study["settings"]["following"]["dead_zone"] / study["settings"]["held_out"]
    with styled():
        figure = Canvas(figsize=(3.6 * len(following), 5.2), layout="constrained")
        axes = figure.subplots(2, len(following), sharex=True, sharey="row", squeeze=False)
        for column, run in enumerate(following):
            above, below = axes[0][column], axes[1][column]
            of_strict = strict[run["planted"]]
            _lines(above, of_strict["step"], of_strict["ratios"])
            above.axhline(noise, color=SOFT, linewidth=0.9, linestyle=":")
            above.set_title(f"planted at {run['planted']}", fontsize=8.5)
            _lines(below, run["step"], run["gammas"])
            below.set_yscale("symlog", linthresh=study["settings"]["following"]["threshold"])
            below.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
            below.set_ylim(0, 1.3)
            below.set_xlabel("step")
            for panel in (above, below):
                panel.axhline(0, color=SOFT, linewidth=0.6)
        axes[0][0].set_ylabel("r, strict network\n(dotted: dead zone)")
        axes[1][0].set_ylabel("gamma, following r")
        legend(figure, axes[0][0])
        write_png(path, figure, again)


def _lines(panel: Axes, steps: Sequence[int], courses: Mapping[str, Sequence[float]]) -> None:
    for index, (key, course) in enumerate(courses.items()):
        look = Look(
            layer_colours(len(courses))[index], DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)]
        )
        line(panel, dict(zip(steps, course, strict=True)), look, key, linewidth=1.2)
