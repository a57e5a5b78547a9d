"""The metric, strengths and multipliers against one number that a comparison swept."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from equirelax.files import atomic_write
from equirelax_lab.report.picture import look
from equirelax_lab.report.rows import Curves, swept_curves, swept_setting
from equirelax_lab.report.runs import Run
from equirelax_lab.report.statistics import spread
from equirelax_lab.report.summary import headline
from equirelax_lab.tasks.methods import is_learnt
from equirelax_lab.tasks.task import heading

LETTERS_PER_INCH = 13
"""Of a title, as large as it is drawn here."""


def in_words(key: str) -> str:
    """A setting's name on an axis."""
    return key.rpartition(".")[2].replace("_", " ")


def final_size(table: Sequence[Mapping[str, str]], kind: str) -> float | None:
    """Mean over residuals of the absolute value of gamma, multiplier or slack after the last epoch; None without."""
    last = (
        [float(v) for column, v in table[-1].items() if column.startswith(f"{kind}/") and v] if table else []
    )
    finite = [abs(v) for v in last if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else None


def draw_swept(
    path: Path,
    runs: Sequence[Run],
    metric: Mapping[str, Any],
    title: str,
) -> bool:
    """Write a PNG where one number was swept: the deployed model's metric against it; where strengths were learnt also
    the mean size of multipliers and of gamma after the last epoch. Returns whether there was anything to draw.

    Args:
        path: Where to.
        runs: Finished ones.
        metric: As result files hold it. title: Above everything.
    """
    results = [run.result for run in runs]
    key = swept_setting(results)
    if key is None:
        return False
    errors = [r["test"][headline(r["method"])] for r in results]
    panels = [(heading(metric), swept_curves(results, errors, key))]
    tables = [run.rows if is_learnt(run.result["method"]) else [] for run in runs]
    for kind, words in (("multiplier", "mean |multiplier| at the end"), ("gamma", "mean |gamma| at the end")):
        found = swept_curves(results, [final_size(table, kind) for table in tables], key)
        if found:
            panels.append((words, found))
    order = list(panels[0][1])
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        width = 5.2 + 3.6 * (len(panels) - 1)
        figure = Figure(figsize=(width, 4.2), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=[1.4, *[1] * (len(panels) - 1)])[0]
        for panel, (words, found) in zip(axes, panels, strict=True):
            _lines(panel, found, order)
            _scales(panel, found)
            panel.set(xlabel=in_words(key), ylabel=words)
        axes[0].legend(frameon=False, fontsize=8)
        words = f"{title}: mean over seeds, bars one standard deviation"
        figure.suptitle(textwrap.fill(words, int(LETTERS_PER_INCH * width)))
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=150)
    return True


def _lines(panel: Axes, found: Curves, order: Sequence[str]) -> None:
    for label, by_value in found.items():
        values = sorted(by_value)
        spreads = [spread(by_value[value]) for value in values]
        panel.errorbar(
            values,
            [one.mean for one in spreads],
            [one.std or 0.0 for one in spreads],
            label=label,
            marker="o",
            markersize=3,
            linewidth=1.3,
            elinewidth=0.7,
            **look(order.index(label)),
        )
    panel.grid(alpha=0.25, linewidth=0.5)


def _scales(panel: Axes, found: Curves) -> None:
    """Logarithmic axes where what is above zero spans more than a factor of ten; whole numbers for whole numbers."""
    values = [value for by_value in found.values() for value in by_value]
    means = [spread(several).mean for by_value in found.values() for several in by_value.values()]
    if min(values) > 0 and max(values) > 10 * min(values):
        panel.set_xscale("log")
    elif all(float(value).is_integer() for value in values):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))  # there are no 1.5 layers
    if min(means) > 0 and max(means) > 10 * min(means):
        panel.set_yscale("log")
