"""How every figure looks, and how it becomes part of a page (SVG) or a file (PNG).

Colours and markers are those of `looks`. On a page the colours are CSS variables, so that the page's theme sets them, and text
stays text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import FigureBase
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from equirelax.files import atomic_write
from equirelax_lab.report.looks import INK, RULE, SOFT, VARIABLES, Look
from equirelax_lab.report.tables import Numbers

STYLE: dict[str, Any] = {
    "font.size": 9,
    "text.parse_math": False,  # names come from files: none of them is a formula
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
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
WIDTH = 5.6
"""Of a figure, in inches: legible at the width of a phone as well as at half that of a screen."""
FEW = 12
"""Points of a line that are few enough to be marked."""
MOST_POINTS, LEAST_POINTS, ALL_POINTS = 300, 50, 4000
"""Along a curve or a heat map. Longer ones are thinned to `MOST_POINTS`, to fewer where a figure has many curves (`ALL_POINTS` in
all), but never below `LEAST_POINTS`.
"""
TIP = "tip:"


@dataclass(frozen=True)
class Figure:
    """One figure, drawn by the same function on a page and in a file.

    Attributes:
        title: Above it.
        caption: What it shows and how to read it; on pages.
        draw: Draws it into an empty figure or subfigure.
        numbers: The same as a table.
        height: In inches; `WIDTH` is its width.
    """

    title: str
    caption: str
    draw: Callable[[FigureBase], None]
    numbers: Numbers
    height: float = 3.4


@contextmanager
def styled() -> Iterator[None]:
    """Within it, matplotlib draws as this module says."""
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
    # the size is that of the page's column; a title for those who do not see it stands above
    head = re.sub(r' (?:width|height)="[\d.]+pt"', "", found[: found.index(">")])
    label = f' role="img" aria-labelledby="{name}-title" aria-describedby="{name}-caption"'
    return head + label + found[found.index(">") :]


def png(path: Path, figures: Sequence[Figure], title: str, columns: int = 2, dpi: int = 130) -> None:
    """Write figures side by side into a PNG of few colours, which keeps it small.

    Args:
        path: Where to.
        figures: The first on the upper left; at least one.
        title: Above everything.
        columns: How many figures stand side by side.
        dpi: Dots per inch.
    """
    columns = min(columns, len(figures))
    rows = [figures[start : start + columns] for start in range(0, len(figures), columns)]
    heights = [max(figure.height for figure in row) + 0.3 for row in rows]
    with styled():
        canvas = Canvas(
            figsize=(WIDTH * columns, sum(heights) + 0.4), layout="constrained", facecolor="white"
        )
        canvas.suptitle(title, fontsize=11)
        grid = canvas.subfigures(len(rows), columns, squeeze=False, height_ratios=heights)
        for line, row in zip(grid, rows, strict=True):
            for part, figure in zip(line, row, strict=False):
                part.suptitle(figure.title, fontsize=9.5)
                figure.draw(part)
        write_png(path, canvas, dpi)


def write_png(path: Path, canvas: Canvas, dpi: int = 130) -> None:
    """Write a figure as a PNG with a palette of 256 colours."""
    from PIL import Image

    buffer = io.BytesIO()
    FigureCanvasAgg(canvas)
    canvas.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with atomic_write(path) as temporary:
        picture.save(temporary, optimize=True)


def line(
    panel: Axes, course: Mapping[Any, float], look: Look, label: str, among: int = 1, **style: Any
) -> None:
    """A line over a course, with markers where its points are few.

    Args:
        panel: Where to.
        course: Place -> value.
        look: Of the row.
        label: In legend and tooltip.
        among: How many lines the panel has.
    """
    kept = thinned(course, among)
    marker = look.marker if len(course) <= FEW else None
    given = {"color": look.colour, "linestyle": look.dash, "marker": marker, "label": label, **style}
    (drawn,) = panel.plot(list(kept), list(kept.values()), **given)
    tip(drawn, label)


def tip(artist: Artist, words: str) -> None:
    """Show `words` where a reader points at the artist on a page."""
    artist.set_gid(TIP + " ".join(words.split()))


def legend(part: FigureBase, panel: Axes) -> None:
    """A legend below the figure, in as many columns as its words leave room for."""
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        columns = max(int(88 / (max(map(len, labels)) + 8)), 1)
        part.legend(handles, labels, loc="outside lower left", ncols=min(columns, len(labels)))


def legend_height(labels: Sequence[str]) -> float:
    """The height of that legend in inches."""
    columns = max(int(88 / (max(map(len, labels), default=10) + 8)), 1)
    return 0.19 * -(-len(labels) // columns)


def scaled(axis: Axis, words: str, values: Sequence[float], scale: str | None = None) -> None:
    """Label and scale an axis: logarithmic where the values are above zero and span more than a factor of ten."""
    axis.axes.set(**{f"{axis.axis_name}label": words})  # type: ignore[attr-defined]
    if (scale or spans(values)) == "log":
        _set_log(axis)
        finite = [value for value in values if 0 < value < math.inf]
        few = bool(finite) and max(finite) < 1e3 * min(finite)
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=8))
        axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
        axis.set_minor_formatter(NullFormatter())


def at_values(axis: Axis, words: str, places: Sequence[float]) -> None:
    """An axis for few places, each labelled in full."""
    scaled(axis, words, places)
    if len(places) <= FEW:
        axis.set_major_locator(FixedLocator(list(places)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if sum(len(f"{place:g}") for place in places) > 30:
            axis.set_tick_params(rotation=35)


def epochs(panel: Axes) -> None:
    """Label an axis of epochs, with whole numbers."""
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def _set_log(axis: Axis) -> None:
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")  # type: ignore[attr-defined]


def power(value: float) -> str:
    """A number on a logarithmic axis: plain near 1, a power of ten elsewhere."""
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = value / 10.0**exponent
    return f"10{raised}" if abs(factor - 1) < 1e-6 else f"{factor:.0f}·10{raised}"


def spans(values: Sequence[float]) -> str:
    """The scale for values: log where all are above zero and span more than a factor of ten, else linear."""
    finite = [value for value in values if math.isfinite(value)]
    return "log" if finite and min(finite) > 0 and max(finite) > 10 * min(finite) else "linear"


def thinned(points: Mapping[Any, float], among: int = 1) -> dict[Any, float]:
    """As many points as one of `among` curves may have, evenly chosen, the last one among them."""
    places = list(points)
    every = -(-len(places) // max(min(MOST_POINTS, ALL_POINTS // among), LEAST_POINTS))
    kept = places[::every] if every > 1 else places
    if places and kept[-1] != places[-1]:
        kept.append(places[-1])
    return {place: points[place] for place in kept}
