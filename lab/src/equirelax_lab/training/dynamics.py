"""Facts about a run from metrics.csv: whether strengths, multipliers and slacks still change at its end, loss spikes, and
whether the projected network lags behind the relaxed one.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError
from equirelax.methods import lags
from equirelax_lab.training.folder import read_table

COURSES = ("gamma", "multiplier", "slack")
"""The kinds of columns that are tracked; their names are KIND/RESIDUAL."""

SPIKE, SPIKE_EPOCHS = 1000.0, 2
"""A loss is reported if it is this many times larger than before, for at least this many epochs."""

Courses = dict[str, dict[str, list[float]]]
"""Kind -> residual -> values at the end of every epoch."""


def read_metrics(path: Path, epochs: int | None = None) -> list[dict[str, str]]:
    """Read and check the rows of a metrics.csv.

    Args:
        path: The file.
        epochs: Length of the run; the last row must be of the last epoch. None does not check it.

    Raises:
        ConfigError: The file is missing or truncated, or contains something that is not a number.
    """
    try:
        rows = read_table(path)
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read: {error}. {_ADVICE}") from error
    if not rows or "epoch" not in rows[0]:
        raise ConfigError(f"{path} is damaged: it has no row with an epoch. {_ADVICE}")
    for row in rows:
        for column, value in row.items():
            if value and not _is_number(value):
                raise ConfigError(
                    f"{path} is damaged: column {column} holds '{value[:20]}' at epoch '{row['epoch'][:20]}'. {_ADVICE}"
                )
    if not all(row["epoch"].isdigit() for row in rows):
        raise ConfigError(f"{path} is damaged: a row has no epoch. {_ADVICE}")
    if epochs is not None and int(rows[-1]["epoch"]) + 1 != epochs:
        raise ConfigError(
            f"{path} is damaged: it ends at epoch {int(rows[-1]['epoch']) + 1} of {epochs}. {_ADVICE}"
        )
    return rows


def courses(rows: Sequence[Mapping[str, str]]) -> Courses:
    """The tracked columns, with NaN for empty cells; {} for a run without residuals."""
    columns: Courses = {}
    for column in rows[0] if rows else ():
        kind, slash, key = column.partition("/")
        if slash and kind in COURSES:
            columns.setdefault(kind, {})[key] = [float(row[column] or "nan") for row in rows]
    return columns


def dynamics(rows: Sequence[Mapping[str, str]]) -> dict[str, Any] | None:
    """Summarise how strengths and multipliers ended.

    Returns:
        None for a run without residuals; else
        ``max_abs_gamma``: {largest over residuals and epochs, end: largest over residuals after the last epoch};
        ``window``: {first, last} epoch (from 1) of the last tenth of training;
        ``drift``: kind (gamma, multiplier, slack) -> {change, swing, relative}. Change is the difference between the last
        and the first value in the window, swing the range of the values, each the largest over the residuals; relative is
        the swing over the largest absolute value in the window: 1 or more where the values cross zero, near 0 where they
        hardly change.
    """
    values = courses(rows)
    if "gamma" not in values:
        return None
    epochs = [int(row["epoch"]) + 1 for row in rows]
    start = epochs[-1] - max(math.ceil(epochs[-1] / 10), 1)  # the window begins at the end of this epoch
    inside = [index for index, epoch in enumerate(epochs) if epoch >= start] or [0]
    gammas = values["gamma"].values()
    return {
        "max_abs_gamma": {
            "largest": max((abs(g) for course in gammas for g in course if math.isfinite(g)), default=0.0),
            "end": max((abs(course[-1]) for course in gammas), default=0.0),
        },
        "window": {"first": epochs[inside[0]], "last": epochs[-1]},
        "drift": {kind: _drift(several.values(), inside) for kind, several in values.items()},
    }


def loss_spikes(rows: Sequence[Mapping[str, str]]) -> list[dict[str, float]]:
    """Find epochs in which the mean training loss was `SPIKE` times the smallest before them, for `SPIKE_EPOCHS` or longer.

    Returns:
        For each spike: ``first`` and ``last`` epoch (from 1), ``before``: the smallest loss until then, ``largest`` loss.
    """
    spikes: list[dict[str, float]] = []
    lowest, current = math.inf, None
    for row in rows:
        if not row.get("train/loss"):
            continue
        epoch, loss = int(row["epoch"]) + 1, float(row["train/loss"])
        if 0 < lowest < loss / SPIKE:
            current = current or {"first": epoch, "last": epoch, "before": lowest, "largest": loss}
            current["last"], current["largest"] = epoch, max(current["largest"], loss)
        elif current is not None:
            spikes.append(current)
            current = None
        lowest = min(lowest, loss)
    spikes += [current] if current is not None else []
    return [spike for spike in spikes if spike["last"] - spike["first"] + 1 >= SPIKE_EPOCHS]


def first_lag(rows: Sequence[Mapping[str, str]]) -> int | None:
    """The first epoch (from 1) at which the projected network's loss on training data lags behind the relaxed one's, by the
    rule of `equirelax.methods.lags` over the validated epochs; None if it never does, and for a run without residuals.
    """
    projected: list[float] = []
    relaxed: list[float] = []
    for row in rows:
        if row.get("fit/projected") and row.get("fit/relaxed"):
            projected.append(float(row["fit/projected"]))
            relaxed.append(float(row["fit/relaxed"]))
            if lags(projected, relaxed):
                return int(row["epoch"]) + 1
    return None


def _drift(several: Any, inside: Sequence[int]) -> dict[str, float]:
    windows = [[v for v in (course[i] for i in inside) if math.isfinite(v)] for course in several]
    windows = [window for window in windows if window]
    swing = max((max(window) - min(window) for window in windows), default=0.0)
    size = max((abs(v) for window in windows for v in window), default=0.0)
    return {
        "change": max((abs(window[-1] - window[0]) for window in windows), default=0.0),
        "swing": swing,
        "relative": swing / size if size > 0 else 0.0,
    }


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_ADVICE = "Remove its folder and train the run again, or name another one."
