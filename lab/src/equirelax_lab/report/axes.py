"""Axes: scales, round numbers on logarithmic axes, whole epochs, swept values in full."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

FEW = 12
"""Up to this many values on an axis are each labelled."""
MOST_TICKS = 7
"""Most ticks on a logarithmic axis."""


def scaled(axis: Axis, words: str, values: Sequence[float], scale: str | None = None) -> None:
    """Label and scale an axis: logarithmic if the values are above zero and span more than a factor of ten."""
    axis.axes.set(**{f"{axis.axis_name}label": words})  # type: ignore[attr-defined]
    if (scale or spans(values)) == "log":
        _set_log(axis)
        axis.set_major_locator(RoundLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
        axis.set_minor_formatter(NullFormatter())


class RoundLocator(LogLocator):
    """Places ticks at round numbers on a logarithmic axis: powers of ten, and as many in between as there is room for."""

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
    """Label each of a few values on an axis in full."""
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
    """Label axes of epochs with whole numbers; of several panels, only those at the bottom of a column."""
    for index, panel in enumerate(panels):
        nbins = 7 if len(panels) == 1 else 5
        locator = MaxNLocator(nbins, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)  # of one epoch: 1
        panel.xaxis.set_major_locator(locator)
        if index + _columns_of(panel) >= len(panels):
            panel.set_xlabel("epoch")


def _columns_of(panel: Axes) -> int:
    """How many panels are side by side in the grid of a panel."""
    spec = panel.get_subplotspec()
    return 1 if spec is None else spec.get_gridspec().ncols


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
    """The scale for values: log if all are above zero and span more than a factor of ten, else linear."""
    finite = [value for value in values if math.isfinite(value)]
    return "log" if finite and min(finite) > 0 and max(finite) > 10 * min(finite) else "linear"
