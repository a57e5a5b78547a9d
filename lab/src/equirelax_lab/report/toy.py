"""Pictures and tables of `equirelax toy`: what the forms of ACE do to gamma, and its orbit under two Adams and in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from equirelax.errors import ConfigError
from equirelax_lab.report.drawing import styled, write_png
from equirelax_lab.report.lines import line
from equirelax_lab.report.looks import DASHES, INK, MARKERS, METHODS, SOFT, Look
from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.runs import read_run
from equirelax_lab.tasks.orbit import describe, simulate

METHOD = {"plain": "ace", "augmented": "ace-augmented", "pi": "ace-pi", "resilient": "resilient"}
"""Form of ACE -> the method whose colour it takes; resilient-augmented is a form of resilient."""
TITLES = {
    "symmetric": "symmetric data: gamma = 0 is feasible",
    "broken": "broken symmetry: relaxing is needed",
}


def draw_forms(path: Path, study: Mapping[str, Any], again: str) -> None:
    """Write a PNG: a row for every form, a column for every problem, gamma of every residual over the steps.

    Args:
        path: The file.
        study: The output of `equirelax_lab.tasks.toy.run_toy`.
        again: The command that writes the picture again.
    """
    runs = {(run["problem"], run["form"]): run for run in study["runs"]}
    problems, forms = list(dict.fromkeys(problem for problem, _ in runs)), list(study["forms"])
    with styled():
        figure = Canvas(figsize=(10, 1.5 * len(forms) + 1), layout="constrained")
        axes = figure.subplots(len(forms), len(problems), sharex=True, sharey="row", squeeze=False)
        for row, form in enumerate(forms):
            for column, problem in enumerate(problems):
                run, panel = runs[problem, form], axes[row][column]
                for index, gammas in enumerate(zip(*run["gamma"], strict=True)):
                    course = dict(zip(run["step"], gammas, strict=True))
                    colour = METHODS[METHOD.get(form, "resilient")].colour
                    look = Look(colour, DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)])
                    line(panel, course, look, f"{form}, residual {index + 1}", linewidth=1.1)
                panel.axhline(0, color=SOFT, linewidth=0.6)
                if row == 0:
                    panel.set_title(TITLES.get(problem, problem))
                if column == 0:
                    panel.set_ylabel(f"{form}\ngamma")
                if row == len(forms) - 1:
                    panel.set_xlabel("step (a line for every residual)")
        write_png(path, figure, again)


def forms_table(study: Mapping[str, Any]) -> Numbers:
    """A table of the final state of every form on every problem."""
    head = ("problem", "form", "max abs gamma", "swing of gamma", "max abs gamma times weight")
    keys = ("max_abs_gamma", "swing_gamma", "max_gamma_weight", "loss_relaxed", "loss_strict")
    rows = tuple(
        (run["problem"], run["form"], *(f"{run['final'][key]:.2g}" for key in keys)) for run in study["runs"]
    )
    return Numbers("Forms of ACE", (*head, "loss, relaxed", "loss, projected"), rows)


@dataclass(frozen=True)
class RunOrbit:
    """The strengths of a run and the simulated ones.

    Attributes:
        label: Label of the run.
        steps: Optimiser steps at which gamma was logged.
        gammas: Residual -> gamma at those steps.
        simulated: The orbit at those steps, with the run's own settings and without a task.
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
        ConfigError: There is no run, or its gamma is not moved by ACE's two Adams.
    """
    run = read_run(folder)
    config = run.result["config"]
    strength = config.get("strength", {})
    needed = {"dual_lr", "dual_optimizer", "dual_eps", "augmented", "pi", "initial", "reduction"}
    if not needed <= strength.keys() or config["optimizer"] not in ("adam", "adamw"):
        raise ConfigError(
            f"{folder} is no run of ACE with Adam: gamma of {run.result['method']} has no such orbit."
        )
    if strength["dual_optimizer"] != "adam" or strength["augmented"] or strength["pi"]:
        raise ConfigError(
            f"{folder}: its multipliers move by {strength['dual_optimizer']}, augmented {strength['augmented']}, "
            f"pi {strength['pi']}; the orbit is that of the released form: adam, 0 and 0."
        )
    rows = [row for row in run.rows if row.get("step")]
    if not run.residuals or not rows:
        raise ConfigError(f"{folder} has no strengths yet: let it train for an epoch.")
    steps = [int(float(row["step"])) for row in rows]
    gammas = {key: [float(row[f"gamma/{key}"]) for row in rows] for key in run.residuals}
    course, _ = simulate(
        steps[-1],
        lr=config["learning_rate"],
        dual_lr=strength["dual_lr"],
        dual_eps=strength["dual_eps"],
        initial=strength["initial"],
        residuals=len(gammas) if strength["reduction"] == "mean" else 1,
    )
    simulated = [course[step] for step in steps]
    deviation = max(abs(a - b) for own in gammas.values() for a, b in zip(own, simulated, strict=True))
    return RunOrbit(str(folder), steps, gammas, simulated, deviation)


def orbit_table(courses: Mapping[float, Sequence[float]]) -> Numbers:
    """A table of half-periods and amplitudes of gamma, first and last, for every curvature."""
    head = ("curvature of the task in gamma", "half-period, first", "last", "amplitude, first", "last")
    rows = []
    for curvature, course in courses.items():
        found = describe(course)
        halves, sizes = found["half_periods"], found["amplitudes"]
        cells = ["none"] * 4
        if halves:
            cells = [f"{halves[0]}", f"{halves[-1]}", f"{sizes[0]:.2g}", f"{sizes[-1]:.2g}"]
        rows.append((f"{curvature:g}", *cells, f"{course[-1]:.2g}"))
    return Numbers("Orbit of gamma", (*head, "gamma at the end"), tuple(rows))


def draw_orbit(
    path: Path, courses: Mapping[float, Sequence[float]], run: RunOrbit | None, again: str
) -> None:
    """Write a PNG: gamma over steps for every curvature and, below it, a run's gammas over the simulated one.

    Args:
        path: The file.
        courses: Curvature -> gamma before every step.
        run: The output of `of_run`.
        again: The command that writes the picture again.
    """
    with styled():
        figure = Canvas(figsize=(9, 3.2 if run is None else 6.2), layout="constrained")
        axes = figure.subplots(1 if run is None else 2, 1, squeeze=False)[:, 0]
        for index, (curvature, course) in enumerate(courses.items()):
            label = "no task" if not curvature else f"task of curvature {curvature:g}"
            look = Look(METHODS["ace"].colour if index else INK, DASHES[index % len(DASHES)], "")
            axes[0].plot(
                range(len(course)), course, color=look.colour, linestyle=look.dash, linewidth=1.1, label=label
            )
        axes[0].set_title("gamma under two Adams on lambda × gamma: an orbit, which a task's curvature damps")
        axes[0].legend(ncols=len(courses))
        if run is not None:
            _over(axes[1], run)
        for panel in axes:
            panel.axhline(0, color=SOFT, linewidth=0.6)
            panel.set(xlabel="optimizer step", ylabel="gamma")
        write_png(path, figure, again)


def _over(panel: Axes, run: RunOrbit) -> None:
    for index, own in enumerate(run.gammas.values()):
        label = None if index else f"{len(run.gammas)} residuals of the run"
        panel.plot(run.steps, own, color=METHODS["ace"].colour, linewidth=0.9, alpha=0.7, label=label)
    panel.plot(run.steps, run.simulated, color=INK, linewidth=1, linestyle="--", label="simulated, no task")
    panel.set_title(f"a run's gamma over the simulated one: at most {run.deviation:.2g} apart")
    panel.legend(ncols=2)
