"""What the forms of ACE do to gamma on the toy problems: a picture and a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from equirelax.files import atomic_write
from equirelax_lab.report.picture import COLOURS

TITLES = {
    "symmetric": "symmetric data: gamma = 0 is feasible",
    "broken": "broken symmetry: relaxing is needed",
}


def draw_forms(path: Path, study: Mapping[str, Any]) -> None:
    """Write a PNG: a row for every form, a column for every problem, gamma of every residual over the steps.

    Args:
        path: Where to.
        study: From `equirelax_lab.tasks.toy.run_toy`.
    """
    runs = {(run["problem"], run["form"]): run for run in study["runs"]}
    problems = list(dict.fromkeys(problem for problem, _ in runs))
    forms = list(study["forms"])
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 1.5 * len(forms) + 1), layout="constrained")
        axes = figure.subplots(len(forms), len(problems), sharex=True, sharey="row", squeeze=False)
        for row, form in enumerate(forms):
            for column, problem in enumerate(problems):
                run, axis = runs[problem, form], axes[row][column]
                for index, gammas in enumerate(zip(*run["gamma"], strict=True)):
                    axis.plot(run["step"], gammas, color=COLOURS[index % len(COLOURS)], linewidth=1)
                axis.axhline(0, color="0.6", linewidth=0.6)
                if row == 0:
                    axis.set_title(TITLES.get(problem, problem))
                if column == 0:
                    axis.set_ylabel(f"{form}\ngamma")
                if row == len(forms) - 1:
                    axis.set_xlabel("step")
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=130)


def forms_table(study: Mapping[str, Any]) -> str:
    """A markdown table: the end of every form on every problem."""
    lines = [
        "| problem | form | max abs gamma | swing of gamma | max abs gamma times weight | loss, relaxed "
        "| loss, projected |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = ("max_abs_gamma", "swing_gamma", "max_gamma_weight", "loss_relaxed", "loss_strict")
    for run in study["runs"]:
        cells = " | ".join(f"{run['final'][key]:.2g}" for key in keys)
        lines.append(f"| {run['problem']} | {run['form']} | {cells} |")
    return "\n".join(lines)
