"""Tables and pictures of `equirelax planted`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from equirelax_lab.report.drawing import styled, write_png
from equirelax_lab.report.lines import layer_colours, legend, line
from equirelax_lab.report.looks import DASHES, MARKERS, SOFT, Look
from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.statistics import spread

TICKS = (0, 1e-3, 1e-2, 1e-1, 1)
"""Of gamma."""


def by_place(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The place of the planted asymmetry -> its runs, one for every seed."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        found.setdefault(run["planted"], []).append(run)
    return found


def ratios_table(study: Mapping[str, Any]) -> Numbers:
    """A table of r of every layer of the strict networks, mean and standard deviation over seeds, and the layer with the largest.

    Args:
        study: The output of `equirelax_lab.tasks.planted_asymmetry.run_planted`.
    """
    rows = []
    for planted, runs in by_place(study["strict"]).items():
        layers = list(zip(*(run["score"]["layers"] for run in runs), strict=True))
        tops = [max(run["score"]["layers"], key=lambda layer: layer["ratio"]) for run in runs]
        keys = Counter(top["key"] for top in tops)
        named = (
            f"{key} ({count} of {len(runs)})" if len(runs) > 1 else key for key, count in keys.most_common()
        )
        ratios = (_cell([layer["ratio"] for layer in same], ".4f") for same in layers)
        z, loss = [top["z"] for top in tops], [run["loss"][-1] for run in runs]
        rows.append((planted, *ratios, ", ".join(named), _cell(z, ".1f"), _cell(loss, ".3f")))
    keys_of = (layer["key"] for layer in study["strict"][0]["score"]["layers"])
    return Numbers("Planted", ("planted at", *keys_of, "largest r", "its z", "loss"), tuple(rows))


def gammas_table(study: Mapping[str, Any]) -> Numbers:
    """A table of the final values of gammas that follow the score, and of the networks' losses, over seeds."""
    strict = by_place(study["strict"])
    rows = []
    for planted, runs in by_place(study["following"]).items():
        ends = ([run["gammas"][key][-1] for run in runs] for key in runs[0]["gammas"])
        losses = (
            [run["loss"] for run in runs],
            [run["loss_strict"] for run in runs],
            [run["loss"][-1] for run in strict[planted]],
        )
        rows.append((planted, *(_gammas(end) for end in ends), *(_cell(loss, ".3f") for loss in losses)))
    keys = (f"gamma {key}" for key in study["following"][0]["gammas"])
    losses_of = ("loss, deployed", "loss, gamma 0", "loss, strict")
    return Numbers("Planted following", ("planted, gammas following", *keys, *losses_of), tuple(rows))


def _gammas(ends: Sequence[float]) -> str:
    """Mean and standard deviation, and how many are exactly 0 if only some are."""
    zeros = sum(end == 0 for end in ends)
    if zeros == len(ends):
        return "0"
    return _cell(ends, ".3f") + (f" ({zeros} of {len(ends)} are 0)" if zeros else "")


def _cell(values: Sequence[float], digits: str) -> str:
    found = spread(values)
    return format(found.mean, digits) + ("" if found.std is None else f" ± {found.std:{digits}}")


def panels_of(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores of the strict networks, as `equirelax_lab.report.symmetry_score.draw_scores` takes them."""
    panels = []
    for planted, runs in by_place(study["strict"]).items():
        layers = []
        for same in zip(*(run["score"]["layers"] for run in runs), strict=True):
            found = spread([layer["ratio"] for layer in same])
            layers.append({"key": same[0]["key"], "ratio": found.mean, "spread": found.std or 0.0})
        z = spread([run["score"]["whole"]["z"] for run in runs]).mean
        examples = runs[0]["score"]["examples"]
        panels.append(
            {"run": f"planted at {planted}", "examples": examples, "layers": layers, "whole": {"z": z}}
        )
    return panels


def draw_courses(path: Path, study: Mapping[str, Any], again: str) -> None:
    """Write a PNG of the first seed: r of the strict network's layers over its steps, and below it the gammas that follow r.

    Args:
        path: The file.
        study: As for `ratios_table`.
        again: The command that writes the picture again.
    """
    strict = {planted: runs[0] for planted, runs in by_place(study["strict"]).items()}
    following = [runs[0] for runs in by_place(study["following"]).values()]
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
