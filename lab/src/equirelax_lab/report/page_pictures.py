"""A report's main figures as PNG files, for papers and slides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from equirelax.files import atomic_write
from equirelax_lab.report import conditions
from equirelax_lab.report.figures import common, spans
from equirelax_lab.report.figures_strengths import KINDS, Courses, courses
from equirelax_lab.report.picture import Table, draw, gamma_columns
from equirelax_lab.report.runs import Chapter
from equirelax_lab.report.swept import draw_swept
from equirelax_lab.tasks.task import heading

HEAT_KINDS = ("gamma", "multiplier", "slack", "lie")


def draw_pictures(out: Path, chapters: Sequence[Chapter]) -> list[Path]:
    """Write for every chapter NAME-curves.png and, where there is something to draw, NAME-layers-METHOD.png (layer by
    time), NAME-sweep.png and NAME-conditions.png into `out`; returns the files.
    """
    found: list[Path] = []
    used: set[str] = set()
    for chapter in chapters:
        name = _unique(file_name(chapter.name), used)
        found += _draw_chapter(out, name, chapter)
    return found


def _draw_chapter(out: Path, name: str, chapter: Chapter) -> list[Path]:
    title, metric = chapter.title, chapter.metric
    written = [out / f"{name}-curves.png"]
    tables: dict[str, list[Table]] = {
        label: [run.rows for run in several if run.rows] for label, several in chapter.in_curves().items()
    }
    scale = "linear" if metric.get("higher_is_better") else "log"
    draw(written[0], {k: v for k, v in tables.items() if v}, title, heading(metric), scale)
    for label, several in chapter.in_curves().items():
        if any(gamma_columns(run.rows) for run in several):
            path = out / f"{name}-layers-{file_name(label)}.png"
            draw_layers(path, courses(several), f"{title}: {label}")
            written.append(path)
    if draw_swept(out / f"{name}-sweep.png", chapter.finished, metric, title):
        written.append(out / f"{name}-sweep.png")
    if further := conditions.curves([run.result for run in chapter.finished]):
        written.append(out / f"{name}-conditions.png")
        conditions.draw_conditions(written[-1], further, metric, title)
    return written


def draw_layers(path: Path, found: dict[str, Courses], title: str) -> None:
    """Write a PNG: a heat map, layer by time, for each of gamma, multipliers, slacks and Lie derivatives that there is.

    Args:
        path: Where to. found: From `figures_strengths.courses`. title: Above everything.
    """
    kinds = [kind for kind in HEAT_KINDS if kind in found]
    layers = max(len(found[kind]) for kind in kinds)
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure(figsize=(10, len(kinds) * (0.16 * layers + 1.1) + 0.5), layout="constrained")
        axes = figure.subplots(len(kinds), 1, squeeze=False, sharex=True)[:, 0]
        for panel, kind in zip(axes, kinds, strict=True):
            _heat(figure, panel, kind, found[kind])
        axes[-1].set_xlabel("epoch")
        figure.suptitle(title)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=150)


def _heat(figure: Figure, panel: Axes, kind: str, by_layer: Courses) -> None:
    """One heat map with its colour bar; logarithmic colours where values span a lot, blue and orange around zero."""
    epochs = common(list(by_layer.values()))
    values = [[one[epoch] for epoch in epochs] for one in by_layer.values()]
    flat = [value for row in values for value in row]
    norm, colours = Normalize(min(flat), max(flat)), "cividis"
    if min(flat) < 0:
        largest = max(map(abs, flat))
        norm, colours = Normalize(-largest, largest), "PuOr_r"
    elif kind != "gamma" and spans(flat) == "log":
        norm = LogNorm(min(flat), max(flat))
    edges = (epochs[0] - 0.5, epochs[-1] + 0.5)
    drawn = panel.imshow(
        values,
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        norm=norm,
        extent=(*edges, len(by_layer) - 0.5, -0.5),
    )
    panel.set_yticks(range(len(by_layer)), list(by_layer))
    panel.set_title(KINDS[kind], loc="left")
    figure.colorbar(drawn, ax=panel, pad=0.01)


def file_name(words: str) -> str:
    """Words as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.=_-]+", "-", words).strip("-.") or "runs"


def _unique(name: str, used: set[str]) -> str:
    number, found = 2, name
    while found in used:
        found, number = f"{name}-{number}", number + 1
    used.add(found)
    return found
