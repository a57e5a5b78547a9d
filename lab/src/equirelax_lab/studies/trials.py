"""From grids to runs: every combination of model, method, swept settings and seed, with its folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax_lab.studies.spec import Grid, Study, merged, nested
from equirelax_lab.tasks.matching import about, check_variant, matched
from equirelax_lab.tasks.methods import choice, needs_residuals
from equirelax_lab.tasks.registry import check_optimizer, defaults, task_class
from equirelax_lab.tasks.settings import NAMES, RunConfig
from equirelax_lab.tasks.task import NO_PLACEMENT

NOT_SWEPT = (*NAMES, "seed")
"""Keys of a run's settings that say which run it is."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One run of a study.

    Attributes:
        grid: Name of its grid. kind: Its name without the seed; trials of a kind differ in the seed alone.
        config: The run's settings. folder: Where it is, relative to the study's folder.
    """

    grid: str
    kind: str
    config: RunConfig
    folder: Path

    @property
    def label(self) -> str:
        """How tables call it."""
        return str(self.folder)


def grid_folder(study: Study, grid: Grid) -> Path:
    """Where a grid's runs and comparison are, relative to the study's folder."""
    return Path(grid.name) if len(study.grids) > 1 else Path()


def trials(study: Study) -> list[Trial]:
    """All runs of a study, seeds outermost: what is there after a while compares everything on a few seeds.

    Raises:
        ConfigError: a name, key or value that does not exist or does not fit; two runs of one name.
    """
    found = [trial for grid in study.grids for trial in _of_grid(study, grid)]
    seen: set[Path] = set()
    for trial in found:
        if trial.folder in seen:
            raise ConfigError(f"Two runs are called {trial.folder}: a value is swept twice.")
        seen.add(trial.folder)
    # sorting is stable: grids, models, methods and values keep the file's order
    return sorted(found, key=lambda trial: trial.config.seed)


def left_out(grid: Grid) -> list[str]:
    """METHOD on MODEL for those that do not go together: the model has nothing to relax."""
    pairs = itertools.product(_models(grid), grid.methods)
    return [f"{method} on {model}" for model, method in pairs if not _fits(grid, model, method)]


def full_keys(config: RunConfig, key: str) -> list[str]:
    """The settings of a run, dotted, that `key` may stand for: itself, or those of sections that end with it."""
    return [name for name in _names_of(config) if name == key or name.endswith(f".{key}")]


def check_known(keys: Iterable[str], configs: Sequence[RunConfig], where: str) -> None:
    """Every key must be a setting of some run of `configs`.

    Raises:
        ConfigError: one is not, with a suggestion; it begins with `where`.
    """
    dotted = {name for config in configs for name in _names_of(config)}
    known = sorted({*dotted, *(name.rpartition(".")[2] for name in dotted)} - {*NOT_SWEPT})
    for key in keys:
        if key not in known:
            raise ConfigError(f"{where}: no method here has the setting '{key}'.{did_you_mean(key, known)}")


def _names_of(config: RunConfig) -> list[str]:
    return [
        f"{section}.{inner}" if isinstance(value, dict) else section
        for section, value in config.to_dict().items()
        for inner in (value if isinstance(value, dict) else (section,))
    ]


def _of_grid(study: Study, grid: Grid) -> list[Trial]:
    try:
        kinds = [
            (name, config)
            for model in _models(grid)
            for method in grid.methods
            if _fits(grid, model, method)
            for name, config in _kinds(grid, model, method)
        ]
        if not kinds:
            raise ConfigError(
                "none of its models has anything to relax: choose a method that needs no residuals."
            )
        pairs = [(config.model, config.method) for _, config in kinds]
        check_variant(grid.benchmark, pairs, grid.recipe)
        keys = (key.strip() for text in grid.sweep for key in text.split("+"))
        check_known(keys, [config for _, config in kinds], "'sweep'")
        return [
            Trial(
                grid.name,
                name,
                config.updated({"seed": seed}),
                grid_folder(study, grid) / f"{name}-seed{seed}",
            )
            for name, config in kinds
            for seed in grid.seeds
        ]
    except ConfigError as error:
        raise ConfigError(f"Grid '{grid.name}' of study '{study.name}': {error}") from error


def _models(grid: Grid) -> Sequence[str]:
    """The models, names checked as all names of the grid are."""
    task = task_class(grid.benchmark)
    for method in grid.methods:
        choice(method)
    models = grid.models or (next(iter(task.models)),)
    for model in models:
        if model not in task.models:
            defaults(grid.benchmark, model, "strict")  # says so
    for key, names in (("per_model", models), ("per_method", grid.methods)):
        for name in getattr(grid, key):
            if name not in names:
                raise ConfigError(
                    f"'{key}' has settings for '{name}', which is not run.{did_you_mean(str(name), list(names))}"
                )
    return models


def _fits(grid: Grid, model: str, method: str) -> bool:
    """Of several models, those with nothing to relax run with the methods that relax nothing."""
    if len(_models(grid)) == 1 or not needs_residuals(method):
        return True
    return defaults(grid.benchmark, model, method).residual.placement != NO_PLACEMENT


def _kinds(grid: Grid, model: str, method: str) -> list[tuple[str, RunConfig]]:
    """(name, settings) for every combination of the swept values."""
    values: Mapping[str, Any] = grid.settings
    values = merged(values, grid.per_model.get(model, {}))
    values = merged(values, grid.per_method.get(method, {}))
    for key in NOT_SWEPT:
        if key in values:
            theirs = {"benchmark": "benchmark", "recipe": "recipe", "trained_as": "about"}.get(key, f"{key}s")
            raise ConfigError(f"'settings' holds '{key}': that is a key of the grid, '{theirs}'.")
    reference = None if grid.as_published else about(grid.methods, grid.about)
    recipe = matched(grid.benchmark, model, method, reference, grid.recipe)
    config = defaults(grid.benchmark, model, method, *recipe).updated(values)
    first = f"{model}-{method}" if len(_models(grid)) > 1 else method
    axes = [axis for key, each in grid.sweep.items() if (axis := _axis(config, key, each))]
    found = []
    for point in itertools.product(*axes):
        changes: dict[str, Any] = {}
        for _, change in point:
            changes = merged(changes, change)
        found.append((first + "".join(name for name, _ in point), config.updated(changes)))
        check_optimizer(found[-1][1])
    return found


def _axis(config: RunConfig, text: str, values: Sequence[Any]) -> list[tuple[str, dict[str, Any]]]:
    """(part of the name, change of the settings) for every value; empty where the method lacks one of the settings."""
    keys = [key.strip() for key in text.split("+")]
    full = [full_keys(config, key) for key in keys]
    for key, found in zip(keys, full, strict=True):
        if len(found) > 1:
            raise ConfigError(f"'sweep': '{key}' may be {' or '.join(found)}; write one of them in full.")
    if not all(full):
        return []
    axis = []
    for value in values:
        each = value if isinstance(value, tuple) else (value,) * len(full)
        change: dict[str, Any] = {}
        for (name,), own in zip(full, each, strict=True):
            change = merged(change, nested(name, own))
        word = re.sub(r"[^\w.+-]", "_", str(each[0]))
        axis.append((f"-{keys[0].rpartition('.')[2]}{word}", change))
    return axis
