"""All results as one tidy table: a row for every run and measure, and a course for every run and logged column.

Tables, figures and sentences of reports are computed from it.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equirelax_lab.report.rows import labels
from equirelax_lab.report.runs import Run
from equirelax_lab.tasks.methods import choice

Course = dict[int, float]
"""Epoch (from 1) -> value."""


@dataclass(frozen=True)
class Measure:
    """One number that a run ended with.

    Attributes:
        row: Label of the table row that the run belongs to.
        run: Name of its folder.
        method, model, seed: Method, model and seed of the run.
        name: What was measured: test, val, seconds, parameters, "test class accuracy", ...
        state: State of the network: relaxed, projected, folded; strict; empty if it makes no difference.
        value: The number.
    """

    row: str
    run: str
    method: str
    model: str
    seed: int
    name: str
    state: str
    value: float


class Table:
    """The tidy table of runs of one benchmark.

    Args:
        runs: The runs, in the order of the rows; those without a result have only courses.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.rows: dict[str, list[Run]] = {}
        named = labels([run.result for run in runs])
        for label, run in zip(named, runs, strict=True):
            self.rows.setdefault(label, []).append(run)
        self.measures = [
            Measure(label, run.name, run.result["method"], run.result["model"], run.result["seed"], *one)
            for label, several in self.rows.items()
            for run in several
            if run.finished
            for one in _measured(run.result)
        ]
        self._values: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
        for one in self.measures:
            self._values.setdefault((one.row, one.name, one.state), []).append((one.seed, one.value))

    def values(self, row: str, name: str, state: str = "") -> dict[int, float]:
        """Seed -> value of a measure; {} if no run of the row has it."""
        return dict(self._values.get((row, name, state), ()))

    def names(self, beginning: str) -> list[str]:
        """The measures whose names begin with `beginning`, in the order of their first occurrence."""
        return list(dict.fromkeys(one.name for one in self.measures if one.name.startswith(beginning)))

    def courses(self, row: str, column: str) -> list[Course]:
        """A course for every run of the row that logged the column."""
        found = (run.series(column) for run in in_curves(self.rows[row]))
        return [one for one in found if one]


def measures_csv(comparisons: Sequence[Sequence[Run]]) -> str:
    """All measures of several comparisons as CSV, a line for each, with the benchmark in the first column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["benchmark", *Measure.__annotations__])
    for runs in comparisons:
        for one in Table(runs).measures:
            writer.writerow([runs[0].result["benchmark"], *vars(one).values()])
    return text.getvalue()


def in_curves(runs: Sequence[Run]) -> list[Run]:
    """The runs of a row over which its curves are averaged: the finished ones, or all if none is finished.

    A run that has only begun would cut the mean over all seeds to its own epochs.
    """
    return [run for run in runs if run.finished] or list(runs)


def headline(method: str) -> str:
    """The state of the network by which a method is judged: projected, or relaxed if the method deploys that."""
    return "relaxed" if choice(method).deploys_relaxed else "projected"


def condition(name: str) -> tuple[str, float]:
    """ "point dropout 0.25" -> ("point dropout", 0.25)."""
    match = re.fullmatch(r"(.+) ([0-9.]+)", name)
    return (match.group(1), float(match.group(2))) if match else (name, 0.0)


def mean(several: Sequence[Mapping[int, float]]) -> Course:
    """The mean over courses, at the epochs that all of them have."""
    return {epoch: sum(one[epoch] for one in several) / len(several) for epoch in common(several)}


def common(several: Sequence[Mapping[int, float]]) -> list[int]:
    """The epochs that all courses have, in order."""
    return sorted(set.intersection(*(set(one) for one in several))) if several else []


def final_size(run: Run, kind: str) -> float | None:
    """Mean over residuals of the absolute value of gamma, multiplier or slack after the last epoch; None without."""
    last = run.rows[-1] if run.rows else {}
    found = [abs(float(v)) for column, v in last.items() if column.startswith(f"{kind}/") and v]
    finite = [value for value in found if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _measured(result: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(name, state, value) of everything that a result measured."""
    headline_metric = result["metric"]["name"]
    for part in ("test", "val"):
        yield from _states(part, result[part])
        for state, values in result.get("metrics", {}).get(part, {}).items():
            for name, value in (values or {}).items():
                if name != headline_metric:
                    yield f"{part} {name}", state, value
    if averaged := result.get("averaged"):
        yield "averaged decay", "", averaged["decay"]
        yield from _states("averaged test", averaged["test"])
    for name, values in result.get("conditions", {}).items():
        yield from _states(
            f"condition {name}", {state: one[headline_metric] for state, one in values.items() if one}
        )
    if error := result["equivariance_error"]:
        yield from _states("equivariance error", {"relaxed": error["before"], "projected": error["after"]})
    yield from _states("parameters", result["parameters"])
    for state, costs in result.get("inference", {}).items():
        for name, value in costs.items():
            yield name, state, value
    for key, gamma in result["gammas"].items():
        yield f"gamma {key}", "", gamma
    for name in ("seconds", "epochs", "selected_epoch"):
        yield name, "", result[name]


def _states(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """The known states of a measure that differs between the states of the network."""
    return ((name, state, value) for state, value in values.items() if value is not None)
