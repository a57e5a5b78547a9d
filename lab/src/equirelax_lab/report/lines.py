"""Lines with their markers and tooltips, legends, and panels side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from equirelax_lab.report.looks import Look

SHADES = matplotlib.colormaps["cividis"]
"""Of layers, early ones dark."""
MARKED = 8
"""Points of a line that are few enough to be marked."""
MOST_POINTS, LEAST_POINTS, ALL_POINTS = 300, 50, 4000
"""Along a curve or a heat map. Longer ones are thinned to `MOST_POINTS`, to fewer where a figure has many curves (`ALL_POINTS` in
all), but never below `LEAST_POINTS`.
"""
TIP = "tip:"
"""How the id of an artist begins whose rest is its tooltip."""


def line(
    panel: Axes,
    course: Mapping[Any, float],
    look: Look,
    label: str,
    among: int = 1,
    tooltip: str = "",
    **style: Any,
) -> None:
    """A line over a course, with markers where its points are few: one point alone would not be seen.

    Args:
        panel: Where to.
        course: Place -> value.
        look: Of the row.
        label: In the legend; one that begins with an underscore is not in it.
        among: How many lines the figure has.
        tooltip: Text of the tooltip; empty shows the label.
        style: Of the line, where it is not the row's.
    """
    kept = thinned(course, among)
    marker = look.marker if len(course) <= MARKED else None
    given = {"color": look.colour, "linestyle": look.dash, "marker": marker, "label": label, **style}
    (drawn,) = panel.plot(list(kept), list(kept.values()), **given)
    tip(drawn, tooltip or label)


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


def layer_colours(count: int) -> list[str]:
    """Colours of layers, early ones dark and late ones bright: evenly spaced in lightness, for colour-blind readers too."""
    return [matplotlib.colors.to_hex(SHADES(0.25 + 0.6 * i / max(count - 1, 1))) for i in range(count)]


def thinned(points: Mapping[Any, float], among: int = 1) -> dict[Any, float]:
    """As many points as one of `among` curves may have, evenly chosen, the last one among them."""
    places = list(points)
    every = -(-len(places) // max(min(MOST_POINTS, ALL_POINTS // among), LEAST_POINTS))
    kept = places[::every] if every > 1 else places
    if places and kept[-1] != places[-1]:
        kept.append(places[-1])
    return {place: points[place] for place in kept}
