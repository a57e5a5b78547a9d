"""Figures in files: those that a comparison writes, and those that a report writes beside its page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equirelax_lab.report import curves, layers, sweeps, tables
from equirelax_lab.report.drawing import Figure, png
from equirelax_lab.report.runs import Chapter, Run
from equirelax_lab.report.table import Table

CURVES, SWEEP, CONDITIONS = "curves", "sweep", "conditions"


def pictures(
    table: Table, runs: Sequence[Run], metric: Mapping[str, Any]
) -> dict[str, tuple[list[Figure], int]]:
    """Name of a picture -> its figures and how many are side by side; empty pictures are left out.

    Args:
        table: The comparison.
        runs: Its finished runs.
        metric: The headline metric, as in result files.
    """
    over_training = [curves.validation(table, metric), curves.fit(table), *layers.strengths_of_rows(table)]
    found: dict[str, tuple[list[Figure | None], int]] = {
        CURVES: (over_training, 2),
        SWEEP: ([*sweeps.sweeps(runs, metric)], 3),
        CONDITIONS: ([sweeps.further_conditions(tables.levels(table), metric)], 1),
    }
    kept = {name: ([one for one in figures if one], columns) for name, (figures, columns) in found.items()}
    return {name: (figures, columns) for name, (figures, columns) in kept.items() if figures}


def draw_pictures(out: Path, chapters: Sequence[Chapter], again: str = "") -> list[Path]:
    """Write the main figures of a report as PNG files into `out`: NAME-curves.png for every chapter and, if there is something
    to draw, NAME-layers-ROW.png (layer by time), NAME-sweep.png and NAME-conditions.png.

    Args:
        out: A folder.
        chapters: The chapters of the report.
        again: The command that writes them again.

    Returns:
        The files.
    """
    found: list[Path] = []
    for chapter in chapters:
        table = Table(chapter.runs)
        wanted = pictures(table, chapter.finished, chapter.metric)
        for label, runs in table.rows.items():
            if any(run.residuals for run in runs):
                wanted[f"layers-{label}"] = (layers.strengths(label, runs), 2)
        for name, (drawn, columns) in wanted.items():
            stem = re.sub(r"[^A-Za-z0-9.=_-]+", "-", f"{chapter.name}-{name}").strip("-.")
            used = sum(path.stem == stem or path.stem.startswith(f"{stem}~") for path in found)
            found.append(out / f"{stem}{f'~{used + 1}' if used else ''}.png")
            png(found[-1], drawn, f"{chapter.title}: {name}", columns, again)
    return found
