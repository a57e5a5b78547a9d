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
"""The colour map of layers: early ones dark."""
MARKED = 8
"""Lines with up to this many points have markers."""
MOST_POINTS, LEAST_POINTS, ALL_POINTS = 300, 50, 4000
"""Points along a curve or a heat map. Longer ones are thinned to `MOST_POINTS`, to fewer if a figure has many curves
(`ALL_POINTS` in all), but never below `LEAST_POINTS`.
"""
TIP = "tip:"
"""The beginning of an artist's id, of which the rest is its tooltip."""


def line(
    panel: Axes,
    course: Mapping[Any, float],
    look: Look,
    label: str,
    among: int = 1,
    tooltip: str = "",
    **style: Any,
) -> None:
    """Draw a line over a course, with markers if it has few points: a single point would not be seen.

    Args:
        panel: The panel to draw into.
        course: Place -> value.
        look: The look of the row.
        label: The label in the legend; a label that begins with an underscore is left out.
        among: How many lines the figure has.
        tooltip: Text of the tooltip; empty shows the label.
        style: The style of the line, if it is not the row's.
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
    """Draw a legend of all panels below the figure, each label once, in as many columns as fit."""
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
    """Make a panel for every title, side by side and below each other.

    Args:
        part: The empty figure.
        titles: The titles of the panels.
        columns: At most this many panels side by side.
        share: Whether the panels share one vertical axis.
        alone: Whether a single panel has its title as well.
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
    """The height of `count` panels in inches."""
    return 2.9 if count == 1 else 0.3 + 1.75 * -(-count // min(columns, count))


def layer_colours(count: int) -> list[str]:
    """Colours of layers, early ones dark and late ones bright: evenly spaced in lightness, also for colour-blind readers."""
    return [matplotlib.colors.to_hex(SHADES(0.25 + 0.6 * i / max(count - 1, 1))) for i in range(count)]


def thinned(points: Mapping[Any, float], among: int = 1) -> dict[Any, float]:
    """Thin points to as many as one of `among` curves may have: evenly spaced, including the last one."""
    places = list(points)
    every = -(-len(places) // max(min(MOST_POINTS, ALL_POINTS // among), LEAST_POINTS))
    kept = places[::every] if every > 1 else places
    if places and kept[-1] != places[-1]:
        kept.append(places[-1])
    return {place: points[place] for place in kept}
