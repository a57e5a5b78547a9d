"""How every figure looks, and how it becomes part of a page (SVG) or a file (PNG).

Colours and markers are those of `looks`. On a page the colours are CSS variables, so that the page's theme sets them, and text
stays text.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import FigureBase
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from equirelax.files import atomic_write
from equirelax_lab.report.looks import INK, RULE, SOFT, VARIABLES, Look
from equirelax_lab.report.numbers import Numbers

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
SHADES = matplotlib.colormaps["cividis"]
WIDTH = 5.6
"""Of a figure, in inches: legible at the width of a phone as well as at half that of a screen."""
FEW = 12
"""Places on an axis that are few enough to be labelled each."""
MARKED = 8
"""Points of a line that are few enough to be marked."""
MOST_POINTS, LEAST_POINTS, ALL_POINTS = 300, 50, 4000
"""Along a curve or a heat map. Longer ones are thinned to `MOST_POINTS`, to fewer where a figure has many curves (`ALL_POINTS` in
all), but never below `LEAST_POINTS`.
"""
MOST_TICKS = 7
"""On a logarithmic axis."""
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


def png(
    path: Path, figures: Sequence[Figure], title: str, columns: int = 2, again: str = "", dpi: int = 130
) -> None:
    """Write figures side by side into a PNG of few colours, which keeps it small.

    Args:
        path: Where to.
        figures: At least one; each goes below the column that ends highest.
        title: Above everything.
        columns: How many figures stand side by side.
        again: The command that writes the picture again; below everything.
        dpi: Dots per inch.
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
        write_png(path, canvas, again, dpi)


def _height(stack: Sequence[Figure]) -> float:
    """Of figures with their titles, in inches."""
    return sum(figure.height + 0.3 for figure in stack)


def write_png(path: Path, canvas: Canvas, again: str = "", dpi: int = 130) -> None:
    """Write a figure as a PNG with a palette of 256 colours, below it the command that writes it again."""
    from PIL import Image

    if again:
        canvas.supxlabel(again, x=0.995, ha="right", fontsize=6.5, color=SOFT, family="monospace")
    buffer = io.BytesIO()
    FigureCanvasAgg(canvas)
    canvas.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with atomic_write(path) as temporary:
        picture.save(temporary, optimize=True)


def line(
    panel: Axes,
    course: Mapping[Any, float],
    look: Look,
    label: str,
    among: int = 1,
    told: str = "",
    **style: Any,
) -> None:
    """A line over a course, with markers where its points are few: one point alone would not be seen.

    Args:
        panel: Where to.
        course: Place -> value.
        look: Of the row.
        label: In the legend; one that begins with an underscore is not in it.
        among: How many lines the figure has.
        told: In the tooltip; as in the legend where this is empty.
        style: Of the line, where it is not the row's.
    """
    kept = thinned(course, among)
    marker = look.marker if len(course) <= MARKED else None
    given = {"color": look.colour, "linestyle": look.dash, "marker": marker, "label": label, **style}
    (drawn,) = panel.plot(list(kept), list(kept.values()), **given)
    tip(drawn, told or label)


def tip(artist: Artist, words: str) -> None:
    """Show `words` where a reader points at the artist on a page."""
    artist.set_gid(TIP + " ".join(words.split()))


def legend(part: FigureBase, *panels: Axes) -> None:
    """A legend of all panels below the figure, each label once, in as many columns as its words leave room for."""
    found: dict[str, Artist] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        columns = min(_columns(list(found)), len(found))
        part.legend(list(found.values()), list(found), loc="outside lower left", ncols=columns)


def legend_height(labels: Sequence[str]) -> float:
    """The height of that legend in inches."""
    return 0.19 * -(-len(labels) // _columns(labels))


def _columns(labels: Sequence[str]) -> int:
    return max(int(88 / (max(map(len, labels), default=10) + 8)), 1)


def panels(
    part: FigureBase, titles: Sequence[str], columns: int = 2, share: bool = True, alone: bool = False
) -> list[Axes]:
    """A panel for every title, side by side and below each other.

    Args:
        part: The empty figure.
        titles: Of the panels.
        columns: At most as many side by side.
        share: Whether the panels have one vertical axis.
        alone: Whether a panel that is the only one has its title, too.
    """
    columns = min(columns, len(titles))
    count = -(-len(titles) // columns)
    grid = part.subplots(count, columns, squeeze=False, sharey=share).ravel()
    for panel, title in zip(grid, titles, strict=False):
        words = textwrap.fill(title, 64 // columns, break_long_words=False)
        panel.set_title(words if alone or len(titles) > 1 else "", fontsize=8.5)
    for empty in grid[len(titles) :]:
        empty.set_axis_off()
    return list(grid[: len(titles)])


def panels_height(count: int, columns: int = 2) -> float:
    """The height of so many panels in inches."""
    return 2.9 if count == 1 else 0.3 + 1.75 * -(-count // min(columns, count))


def scaled(axis: Axis, words: str, values: Sequence[float], scale: str | None = None) -> None:
    """Label and scale an axis: logarithmic where the values are above zero and span more than a factor of ten."""
    axis.axes.set(**{f"{axis.axis_name}label": words})  # type: ignore[attr-defined]
    if (scale or spans(values)) == "log":
        _set_log(axis)
        axis.set_major_locator(RoundLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
        axis.set_minor_formatter(NullFormatter())


class RoundLocator(LogLocator):
    """Round numbers on a logarithmic axis: powers of ten, and as many in between as there is room for."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """The numbers between `vmin` and `vmax` and one on each side."""
        low, high = sorted((max(vmin, 1e-300), max(vmax, 1e-300)))
        if high < 3 * low:
            return MaxNLocator(MOST_TICKS - 2).tick_values(low, high)
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        every = -(-len(decades) // MOST_TICKS)
        for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            found = [factor * 10.0**decade for decade in decades for factor in factors]
            if sum(low <= value <= high for value in found) <= MOST_TICKS:
                return found
        return [10.0**decade for decade in decades if decade % every == 0]


def at_values(axis: Axis, words: str, places: Sequence[float]) -> None:
    """An axis for few places, each labelled in full."""
    scaled(axis, words, places)
    if len(places) <= FEW:
        axis.set_major_locator(FixedLocator(list(places)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: full(value)))
        at = [math.log(place) if axis.get_scale() == "log" else place for place in sorted(places)]
        close = any(after - before < 0.15 * (at[-1] - at[0]) for before, after in pairwise(at))
        if close or sum(len(full(place)) for place in places) > 30:
            axis.set_tick_params(rotation=35)


def full(value: float) -> str:
    """A number without an exponent, unless it has more than seven digits: 0.00005, not 5e-05."""
    plain = np.format_float_positional(value, precision=12, trim="-")
    return plain if len(plain.lstrip("-0.")) <= 7 and len(plain) <= 9 else f"{value:g}"


def epochs(*panels: Axes) -> None:
    """Label axes of epochs, with whole numbers; of several panels those at the bottom of a column alone."""
    for index, panel in enumerate(panels):
        nbins = 7 if len(panels) == 1 else 5
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=nbins, steps=[1, 2, 5, 10]))
        if index + _columns_of(panel) >= len(panels):
            panel.set_xlabel("epoch")


def _columns_of(panel: Axes) -> int:
    """How many panels stand side by side in the grid of one."""
    spec = panel.get_subplotspec()
    return 1 if spec is None else spec.get_gridspec().ncols


def _set_log(axis: Axis) -> None:
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")  # type: ignore[attr-defined]


def layer_colours(count: int) -> list[str]:
    """Colours of layers, early ones dark and late ones bright: evenly spaced in lightness, for colour-blind readers too."""
    return [matplotlib.colors.to_hex(SHADES(0.25 + 0.6 * i / max(count - 1, 1))) for i in range(count)]


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
