"""A run's folder: the names of its files, the check whether a run may use it, and reading its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError, EquirelaxError
from equirelax_lab.tasks.registry import config_from_dict
from equirelax_lab.tasks.settings import RunConfig, read_yaml

CONFIG, RESULT, METRICS, LOG = "config.yaml", "result.json", "metrics.csv", "log.txt"
LAST, BEST, BEST_AVERAGE = "last.ckpt", "best.ckpt", "best_average.ckpt"
"""The resumable checkpoint, and the weights and the averaged weights that validation selected."""


NEEDED = (
    *("benchmark", "model", "method", "seed", "metric", "val", "test", "equivariance_error", "parameters", "epochs"),
    *("selected_epoch", "gammas", "scaled_down", "seconds", "commit", "hardware", "versions", "config"),
)  # fmt: skip
"""The keys of every result.json."""
KINDS = ("relaxed", "projected", "folded")
"""The forms of the network for which it has a value."""


def check_folder(config: RunConfig, folder: Path, resume: bool) -> dict[str, Any] | None:
    """Check that this run may use `folder`; returns its result if it is already finished.

    Raises:
        ConfigError: The folder holds a run and `resume` is False, or a run with other settings.
    """
    if (folder / CONFIG).exists():
        if not resume:
            raise ConfigError(
                f"{folder} holds a run already. Add --resume to continue it, or name another folder "
                "with --out."
            )
        if differing := changed_settings(config, folder):
            raise ConfigError(
                f"A resumed run keeps its settings, but {'; '.join(differing)} (run in {folder})."
            )
        if (folder / RESULT).exists():
            return read_run_result(folder / RESULT)
    return None


def changed_settings(config: RunConfig, folder: Path) -> list[str]:
    """Describe the settings in which `config` differs from the run in `folder`.

    A setting that the run's version did not have has the value of its recipe.

    Raises:
        ConfigError: The file does not contain a run's settings.
    """
    path = folder / CONFIG
    values = read_yaml(path)
    try:
        stored = config_from_dict(values)
    except EquirelaxError as error:
        raise ConfigError(f"{path}: {error}") from error
    return differences(stored.to_dict(), config.to_dict())


def differences(stored: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """Describe the settings in which two configurations differ."""
    lines = []
    for key in sorted(stored.keys() | wanted.keys()):
        old, new = stored.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key} was {old!r} and is now {new!r}")
    return lines


def read_result(path: Path) -> dict[str, Any]:
    """Read a result.json. Raises `ConfigError` if it cannot be read."""
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Remove it and resume the run.") from error
    return loaded


def read_run_result(path: Path) -> dict[str, Any]:
    """Read and check a run's result.json. Raises `ConfigError` if it cannot be read or lacks a key."""
    result = read_result(path)
    check_result(result, path)
    return result


def check_result(result: Any, where: Path) -> None:
    """Raise `ConfigError` if a result lacks a key that reports need, or has settings that this version does not know."""
    missing = [key for key in NEEDED if key not in result] if isinstance(result, dict) else list(NEEDED)
    if not missing:
        shapes = (
            ("val", KINDS),
            ("test", KINDS),
            ("metric", ("name", "unit")),
            ("parameters", ("strict", "relaxed")),
        )
        missing = [
            f"{key}.{inner}"
            for key, inners in shapes
            for inner in inners
            if not isinstance(result[key], dict) or inner not in result[key]
        ]
    if missing:
        raise ConfigError(f"{where} is damaged: it lacks {', '.join(missing)}. Train the run again.")
    try:
        config_from_dict(result["config"])
    except EquirelaxError as error:
        raise ConfigError(f"{where}: {error}") from error


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, as text.

    An incomplete last row is left out. That includes a row without a line ending, whose last number may be cut.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]
    return [row for row in csv.DictReader(lines) if None not in row.values() and None not in row]
