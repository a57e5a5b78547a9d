"""The orbit of gamma under ACE's two Adams: what curvature does to it, and a run's gamma beside the simulated one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equirelax.errors import ConfigError
from equirelax.files import atomic_write
from equirelax.methods import ACE
from equirelax_lab.report.picture import COLOURS, gamma_columns
from equirelax_lab.report.runs import Run, read_run
from equirelax_lab.tasks.orbit import describe, simulate


@dataclass(frozen=True)
class RunOrbit:
    """A run's strengths beside the simulated ones.

    Attributes:
        label: Of the run.
        steps: Optimiser steps at which gamma was logged.
        gammas: Residual -> gamma at those steps.
        simulated: The orbit at those steps, of the run's own settings and without a task.
        deviation: Largest distance of a residual's gamma from it.
    """

    label: str
    steps: list[int]
    gammas: dict[str, list[float]]
    simulated: list[float]
    deviation: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"run": self.label, "steps": self.steps[-1], "deviation": self.deviation}


def of_run(folder: Path) -> RunOrbit:
    """Read a run of ACE, finished or not, and simulate its gamma without a task.

    Raises:
        ConfigError: no run, or one whose gamma is not moved by ACE's two Adams.
    """
    run: Run = read_run(folder)
    config = run.result["config"]
    strength, needed = config.get("strength", {}), ACE.Settings.__dataclass_fields__.keys()
    if not needed <= strength.keys() or config["optimizer"] not in ("adam", "adamw"):
        raise ConfigError(
            f"{folder} is no run of ACE with Adam: gamma of {run.result['method']} has no such orbit."
        )
    if strength["dual_optimizer"] != "adam" or strength["augmented"] or strength["pi"]:
        raise ConfigError(
            f"{folder}: its multipliers move by {strength['dual_optimizer']}, augmented {strength['augmented']}, "
            f"pi {strength['pi']}; the orbit is that of the released form: adam, 0 and 0."
        )
    columns = gamma_columns(run.rows)
    rows = [row for row in run.rows if row.get("step")]
    if not columns or not rows:
        raise ConfigError(f"{folder} has no strengths yet: let it train for an epoch.")
    steps = [int(float(row["step"])) for row in rows]
    gammas = {c.removeprefix("gamma/"): [float(row[c]) for row in rows] for c in columns}
    course, _ = simulate(
        steps[-1],
        lr=config["learning_rate"],
        dual_lr=strength["dual_lr"],
        dual_eps=strength["dual_eps"],
        initial=strength["initial"],
        residuals=len(columns) if strength["reduction"] == "mean" else 1,
    )
    simulated = [course[step] for step in steps]
    deviation = max(abs(a - b) for own in gammas.values() for a, b in zip(own, simulated, strict=True))
    return RunOrbit(str(folder), steps, gammas, simulated, deviation)


def orbit_table(courses: Mapping[float, Sequence[float]]) -> str:
    """A markdown table: half-periods and amplitudes of gamma, first and last, for every curvature."""
    lines = [
        "| curvature of the task in gamma | half-period, first | last | amplitude, first | last | gamma at the end |",
        "|---|---|---|---|---|---|",
    ]
    for curvature, course in courses.items():
        found = describe(course)
        halves, sizes = found["half_periods"], found["amplitudes"]
        cells = (
            [f"{halves[0]}", f"{halves[-1]}", f"{sizes[0]:.2g}", f"{sizes[-1]:.2g}"]
            if halves
            else ["none"] * 4
        )
        lines.append(f"| {curvature:g} | {' | '.join(cells)} | {course[-1]:.2g} |")
    return "\n".join(lines)


def draw_orbit(path: Path, courses: Mapping[float, Sequence[float]], run: RunOrbit | None = None) -> None:
    """Write a PNG: gamma over steps for every curvature and, below it, a run's gammas over the simulated one.

    Args:
        path: Where to.
        courses: Curvature -> gamma before every step.
        run: From `of_run`.
    """
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 3.2 if run is None else 6.2), layout="constrained")
        axes = figure.subplots(1 if run is None else 2, 1, squeeze=False)[:, 0]
        for index, (curvature, course) in enumerate(courses.items()):
            label = "no task" if not curvature else f"task of curvature {curvature:g}"
            axes[0].plot(
                range(len(course)), course, color=COLOURS[index % len(COLOURS)], linewidth=1.1, label=label
            )
        axes[0].set_title(
            "gamma under two Adams on lambda x gamma: an orbit, which a task's curvature damps", loc="left"
        )
        axes[0].legend(frameon=False, ncols=len(courses))
        if run is not None:
            _over(axes[1], run)
        for panel in axes:
            panel.axhline(0, color="0.6", linewidth=0.6)
            panel.set(xlabel="optimizer step", ylabel="gamma")
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=130)


def _over(panel: Axes, run: RunOrbit) -> None:
    for index, own in enumerate(run.gammas.values()):
        label = f"{len(run.gammas)} residuals of the run" if not index else None
        panel.plot(run.steps, own, color=COLOURS[1], linewidth=0.9, alpha=0.7, label=label)
    panel.plot(
        run.steps, run.simulated, color="black", linewidth=1, linestyle="--", label="simulated, no task"
    )
    panel.set_title(f"a run's gamma over the simulated one: at most {run.deviation:.2g} apart", loc="left")
    panel.legend(frameon=False, ncols=2)
