"""The style of every figure, and its output as part of a page (SVG) or as a file (PNG).

Colours and markers are those of `looks`. On a page the colours are CSS variables, so that the page's theme sets them, and text
remains text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import FigureBase

from equirelax.files import atomic_write
from equirelax_lab.report.lines import TIP
from equirelax_lab.report.looks import INK, RULE, SOFT, VARIABLES
from equirelax_lab.report.numbers import Numbers

STYLE: dict[str, Any] = {
    "font.size": 9,
    "text.parse_math": False,  # names come from files and are not formulas
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "equirelax",
}
PALETTE = 32
"""Number of colours of a PNG; with 64, lines and bands look the same and take an eighth more bytes."""
DPI = 130
"""Dots per inch of a PNG."""
WIDTH = 5.6
"""Width of a figure in inches: legible at the width of a phone as well as at half that of a screen."""


@dataclass(frozen=True)
class Figure:
    """One figure, drawn by the same function on a page and in a file.

    Attributes:
        title: The title above it.
        caption: What it shows and how to read it; shown on pages.
        draw: Draws it into an empty figure or subfigure.
        numbers: The same as a table.
        height: Height in inches; the width is `WIDTH`.
    """

    title: str
    caption: str
    draw: Callable[[FigureBase], None]
    numbers: Numbers
    height: float = 3.4


@contextmanager
def styled() -> Iterator[None]:
    """Context in which matplotlib draws in the style of this module."""
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element for a page: colours as CSS variables, tooltips as titles, ids that begin with `name`."""
    with styled():
        canvas = Canvas(figsize=(WIDTH, figure.height), layout="constrained")
        figure.draw(canvas)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    found = text.getvalue()
    found = found[found.index("<svg") :].strip()
    found = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", found, flags=re.DOTALL)
    found = re.sub(rf'<g id="{TIP}([^"]*)">', r"<g><title>\1</title>", found)
    found = re.sub(r'(id="|url\(#|href="#)(?=[\w.-])', rf"\g<1>{name}-", found)
    for colour, variable in VARIABLES.items():
        found = found.replace(colour, f"var(--{variable})")
    found = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", found)
    # The size is that of the page's column. The title, for those who do not see the figure, is above it.
    head = re.sub(r' (?:width|height)="[\d.]+pt"', "", found[: found.index(">")])
    label = f' role="img" aria-labelledby="{name}-title" aria-describedby="{name}-caption"'
    return head + label + found[found.index(">") :]


def png(path: Path, figures: Sequence[Figure], title: str, columns: int = 2, again: str = "") -> None:
    """Write figures side by side into a PNG with few colours, which keeps it small.

    Args:
        path: The file.
        figures: At least one figure; each goes into the shortest column.
        title: The title above everything.
        columns: How many figures are side by side.
        again: The command that writes the picture again, below everything.
    """
    stacks: list[list[Figure]] = [[] for _ in range(min(columns, len(figures)))]
    for figure in figures:
        min(stacks, key=_height).append(figure)
    tallest = max(map(_height, stacks))
    with styled():
        canvas = Canvas(figsize=(WIDTH * len(stacks), tallest + 0.6), layout="constrained", facecolor="white")
        canvas.suptitle(title, fontsize=11)
        for column, stack in zip(canvas.subfigures(1, len(stacks), squeeze=False)[0], stacks, strict=True):
            heights = [_height([figure]) for figure in stack]
            left = tallest - sum(heights)
            ratios = [*heights, left] if left > 0.01 else heights
            parts = column.subfigures(len(ratios), 1, squeeze=False, height_ratios=ratios)[:, 0]
            for part, figure in zip(parts, stack, strict=False):
                part.suptitle(figure.title, fontsize=9.5)
                figure.draw(part)
        write_png(path, canvas, again)


def _height(stack: Sequence[Figure]) -> float:
    """Height of figures with their titles, in inches."""
    return sum(figure.height + 0.3 for figure in stack)


def write_png(path: Path, canvas: Canvas, again: str = "") -> None:
    """Write a figure as a PNG with a small palette, with the command that writes it again below."""
    from PIL import Image

    if again:
        canvas.supxlabel(again, x=0.995, ha="right", fontsize=6.5, color=SOFT, family="monospace")
    buffer = io.BytesIO()
    FigureCanvasAgg(canvas)
    canvas.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    picture = Image.open(buffer).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
    with atomic_write(path) as temporary:
        picture.save(temporary, optimize=True)
