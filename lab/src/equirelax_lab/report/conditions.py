"""The metric under further conditions (dropped points, corruptions): a table and a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from equirelax.files import atomic_write
from equirelax_lab.report.picture import look
from equirelax_lab.report.rounding import spread_text
from equirelax_lab.report.rows import labels, method_of
from equirelax_lab.report.statistics import spread
from equirelax_lab.report.summary import headline
from equirelax_lab.tasks.task import heading

Curves = dict[str, dict[str, dict[float, tuple[float, float]]]]
"""Family of conditions -> label -> level -> (mean, standard deviation over seeds)."""


def curves(results: Sequence[Mapping[str, Any]]) -> Curves:
    """The deployed model's headline metric by family ("point dropout"), method and level (0.25)."""
    values: dict[tuple[str, str, float], list[float]] = {}
    for label, result in zip(labels(results), results, strict=True):
        kind, name = headline(method_of(label)), result["metric"]["name"]
        for condition, found in result.get("conditions", {}).items():
            family, level = split(condition)
            values.setdefault((family, label, level), []).append(found[kind][name])
    gathered: Curves = {}
    for (family, label, level), several in values.items():
        one = spread(several)
        gathered.setdefault(family, {}).setdefault(label, {})[level] = (one.mean, one.std or 0.0)
    return gathered


def split(condition: str) -> tuple[str, float]:
    """ "point dropout 0.25" -> ("point dropout", 0.25)."""
    match = re.fullmatch(r"(.+) ([0-9.]+)", condition)
    return (match.group(1), float(match.group(2))) if match else (condition, 0.0)


def cell(mean: float, deviation: float | None, metric: Mapping[str, Any]) -> str:
    """Mean and deviation; percentages have one decimal, for there are many of them."""
    if metric.get("symbol") == "%":
        return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")
    return spread_text({"mean": mean, "std": deviation})


def conditions_table(found: Curves, metric: Mapping[str, Any]) -> str:
    """Markdown: a row for every family and level, a column for every method."""
    names = list(dict.fromkeys(label for family in found.values() for label in family))
    lines = [
        f"Test {heading(metric)} of the deployed model, mean ± standard deviation over seeds.",
        "",
        "| condition | " + " | ".join(names) + " |",
        "|" + " --- |" * (len(names) + 1),
    ]
    for family, by_label in found.items():
        for level in sorted({level for levels in by_label.values() for level in levels}):
            cells = [
                cell(*by_label[name][level], metric) if level in by_label.get(name, {}) else ""
                for name in names
            ]
            lines.append(f"| {family} {level:g} | " + " | ".join(cells) + " |")
    if len(found) > 1:
        lines.append(
            "| mean of all | " + " | ".join(cell(_mean(found, name), None, metric) for name in names) + " |"
        )
    return "\n".join(lines) + "\n"


def _mean(found: Curves, name: str) -> float:
    return spread([value for family in found.values() for value, _ in family.get(name, {}).values()]).mean


def draw_conditions(path: Path, found: Curves, metric: Mapping[str, Any], title: str) -> None:
    """Write a PNG: a panel for every family, a line for every method over the levels."""
    names = list(dict.fromkeys(label for family in found.values() for label in family))
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    with matplotlib.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(3.1 * columns + 1.6, 2.3 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
        for panel, (family, by_label) in zip(axes, found.items(), strict=False):
            for label, levels in by_label.items():
                order, index = sorted(levels), names.index(label)
                means = [levels[level][0] for level in order]
                deviations = [levels[level][1] for level in order]
                panel.errorbar(
                    order, means, deviations, label=label, linewidth=1.2, elinewidth=0.6, **look(index)
                )
            panel.set_title(family, fontsize=8)
            panel.grid(alpha=0.25, linewidth=0.5)
        for panel in axes[len(found) :]:
            panel.set_visible(False)
        for row in range(rows):
            axes[row * columns].set_ylabel(heading(metric))
        handles, words = axes[0].get_legend_handles_labels()
        figure.legend(handles, words, loc="outside right upper", frameon=False)
        figure.suptitle(title)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=150)
