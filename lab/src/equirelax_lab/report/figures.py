"""What every figure of a report is made of: Plotly's traces and layout as plain data, with words and numbers beside."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equirelax_lab.report.picture import COLOURS

DASHES = ("solid", "dash", "dashdot", "dot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star")
# Orange, light, blue out of Okabe and Ito: sides that colour-blind readers tell apart, pale at zero.
DIVERGING = [[0.0, "#0072B2"], [0.5, "#f7f7f7"], [1.0, "#D55E00"]]
MOST_POINTS, LEAST_POINTS, ALL_POINTS = 300, 50, 4000
"""Along a curve or a heat map; longer ones are thinned, the last point kept: to fewer where a figure has many curves, for
`ALL_POINTS` in all, but never below `LEAST_POINTS`.
"""

Trace = dict[str, Any]
Points = Mapping[Any, float]
"""Place (an epoch, a swept number) -> value."""


@dataclass(frozen=True)
class Numbers:
    """A table: the same numbers as in a figure, for readers who do not see it, or want them."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """One figure of a page.

    Attributes:
        title: Above it.
        caption: Below it: what is drawn, and how to read it.
        traces: Plotly's data.
        layout: Plotly's layout; colours of text and grid are set by the page, which knows whether it is dark.
        numbers: The same as a table.
        height: In pixels.
    """

    title: str
    caption: str
    traces: tuple[Trace, ...]
    layout: Mapping[str, Any]
    numbers: Numbers
    height: int = 380


def axis(words: str, scale: str = "linear", **more: Any) -> dict[str, Any]:
    """An axis of a layout."""
    return {"title": {"text": html.escape(words)}, "type": scale, "automargin": True, **more}


def scaled(words: str, values: Sequence[float]) -> dict[str, Any]:
    """An axis for the values, logarithmic where `spans` says so."""
    scale = spans(values)
    return logarithmic(words, values) if scale == "log" else axis(words)


def logarithmic(words: str, values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis for values above zero: labelled at 1, 2 and 5 where they span few powers of ten."""
    few = max(values) < 1e3 * min(values)
    return axis(words, "log", **({"dtick": "D2"} if few else {"dtick": 1, "exponentformat": "power"}))


def plain(name: str) -> str:
    """A name as Plotly shows it: without this, what looks like a tag would be taken for one."""
    return html.escape(name, quote=False)


def line(name: str, points: Points, index: int, among: int = 1, **more: Any) -> Trace:
    """A curve; `index` chooses colour and dashes, `among` is how many curves the figure has."""
    kept = thinned(points, among)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(name),
        "x": list(kept),
        "y": [rounded(value) for value in kept.values()],
        "line": {"color": colour(index), "dash": dash(index), "width": 2},
        **more,
    }


def band(low: Points, high: Points, index: int, group: str) -> Trace:
    """The area between two curves over the same places, shown and hidden with the legend group."""
    low, high = thinned(low), thinned(high)
    return {
        "type": "scatter",
        "x": [*low, *reversed(high)],
        "y": [rounded(value) for value in (*low.values(), *reversed(high.values()))],
        "fill": "toself",
        "fillcolor": faint(index),
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": group,
    }


def colour(index: int) -> str:
    """The `index`-th colour of the palette."""
    return COLOURS[index % len(COLOURS)]


def dash(index: int) -> str:
    """The `index`-th dashes; they move on when the colours begin anew."""
    return DASHES[(index + index // len(COLOURS)) % len(DASHES)]


def faint(index: int) -> str:
    """The `index`-th colour, transparent."""
    red, green, blue = (int(colour(index)[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.15)"


def thinned(points: Points, among: int = 1) -> dict[float, float]:
    """As many of them as one of `among` curves may have, evenly chosen, the last one among them."""
    places = list(points)
    every = -(-len(places) // max(min(MOST_POINTS, ALL_POINTS // among), LEAST_POINTS))
    kept = places[::every] if every > 1 else places
    if places and kept[-1] != places[-1]:
        kept.append(places[-1])
    return {place: points[place] for place in kept}


def rounded(value: float | None) -> float | None:
    """To five digits, which keeps pages small; None (a gap) for what is no finite number."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def shown(value: float | None, digits: int = 4) -> str:
    """A number for a table."""
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def mean(several: Sequence[Points]) -> dict[float, float]:
    """Mean over curves at the places that all of them have."""
    return {place: sum(one[place] for one in several) / len(several) for place in common(several)}


def common(several: Sequence[Points]) -> list[float]:
    """The places that all curves have, in order."""
    return sorted(set.intersection(*(set(one) for one in several))) if several else []


def spans(values: Sequence[float]) -> str:
    """The scale for them: logarithmic where all are above zero and span more than a factor of ten."""
    finite = [value for value in values if math.isfinite(value)]
    return "log" if finite and min(finite) > 0 and max(finite) > 10 * min(finite) else "linear"


def curve_numbers(place: str, curves: Mapping[str, Points], most: int = 12) -> Numbers:
    """A table of curves, a column for each, at `most` places."""
    places = sorted({p for one in curves.values() for p in one})
    every = max(-(-len(places) // most), 1)
    kept = sorted({*places[::every], *places[-1:]})
    rows = tuple((shown(p), *(shown(one.get(p)) for one in curves.values())) for p in kept)
    return Numbers((place, *curves), rows)


def legend_height(traces: Sequence[Trace], height: int = 380) -> int:
    """The height of a figure whose legend stands below it, for all of the legend to be seen."""
    entries = [trace.get("name", "") for trace in traces if trace.get("showlegend", True)]
    per_row = max(int(90 / (max(map(len, entries), default=10) + 6)), 1)
    return height + 22 * -(-len(entries) // per_row)
