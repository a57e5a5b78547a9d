"""Searches: studies that choose their next trials, read from a YAML file that names the ranges of some settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax.settings import COUNT, COUNT_OR_NONE, SEED, shown
from equirelax_lab.recipes import VARIANTS
from equirelax_lab.studies.keys import Keys, merged, nested, read_file
from equirelax_lab.studies.study import Study
from equirelax_lab.studies.trials import NOT_SWEPT, full_keys, setting_names
from equirelax_lab.tasks.methods import choice
from equirelax_lab.tasks.registry import defaults
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training.machine import Machine

KEYS = (
    "title", "benchmark", "model", "method", "recipe", "settings", "search", "trials", "seed", "run_seed", "pruner", "startup",
    "warmup", "attempts", "timeout", "jobs", "small",
)  # fmt: skip
KINDS = ("log", "linear", "integer", "choice")
PRUNERS = ("median", "none")
STARTUP = 5
"""The default of `startup`. It does not depend on the number of trials, which may be raised later."""


@dataclass(frozen=True)
class Axis:
    """A setting that is searched for.

    Attributes:
        key: The setting as in the file, or several joined by +.
        names: The dotted names of these settings, which all take the same value.
        kind: log or linear (floats between two ends), integer (between two ends), or choice.
        values: The two ends, or the choices.
    """

    key: str
    names: tuple[str, ...]
    kind: str
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Search(Study):
    """A study of one model and method whose trials are chosen one after the other.

    Attributes:
        config: The settings of every run, except for those that are searched for.
        settings: The part of them that the file changes.
        axes: The settings that are searched for.
        trials: How many runs in all.
        seed: Seed of the suggestions; that of the runs is in `config`.
        pruner: median ends a run whose validation value is worse than the median of the earlier runs at the same epoch; none
            ends no run.
        startup: Runs at the beginning whose settings are drawn at random, and which are never ended early.
        warmup: Epochs before which no run is ended.
    """

    config: RunConfig
    settings: Mapping[str, Any]
    axes: tuple[Axis, ...]
    trials: int
    seed: int
    pruner: str
    startup: int
    warmup: int

    @property
    def column(self) -> str:
        """The column of metrics.csv that is optimised: for projected models, or for relaxed ones if the method deploys them."""
        return "val/relaxed" if choice(self.config.method).deploys_relaxed else "val/projected"

    @property
    def definition(self) -> dict[str, Any]:
        """What must stay the same for a search to continue, as plain JSON. More trials, jobs or attempts are allowed."""
        config = self.config
        return {
            "benchmark": config.benchmark,
            "model": config.model,
            "method": config.method,
            "recipe": config.recipe,
            "settings": dict(self.settings),
            "run_seed": config.seed,
            "search": {axis.key: {axis.kind: list(axis.values)} for axis in self.axes},
            "seed": self.seed,
            "pruner": self.pruner,
            "startup": self.startup,
            "warmup": self.warmup,
        }

    def changes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that `values` (axis key -> value) give, in the layout of config.yaml."""
        found: dict[str, Any] = {}
        for axis in self.axes:
            for name in axis.names:
                found = merged(found, nested(name, values[axis.key]))
        return found

    def run(self, values: Mapping[str, Any]) -> RunConfig:
        """The settings of a run with `values`."""
        return self.config.updated(self.changes(values))


def read_search(path: Path, small: bool = False) -> Search:
    """The search in a YAML file.

    Its keys are those of `Search`, with `benchmark`, `model`, `method`, `recipe` and `run_seed` for every run; `search`
    holds the settings that are searched for, as in {strength.dual_lr: {log: [1e-5, 1e-2]}}. Several settings that take
    the same value are joined by +. Keys under `small` change the others for a quick variant.

    Raises:
        ConfigError: The file cannot be read; a key is unknown (with a suggestion) or missing, or a value is of the wrong
            kind or outside its range; or `small` is requested, and there is no small variant.
    """
    return read_file(path, small, lambda values, *variant: _search(path.stem, values, *variant))


def _search(name: str, values: Mapping[str, Any], small: bool, changed: tuple[str, ...]) -> Search:
    keys = Keys(values, KEYS)
    keys.need("benchmark", "method", "search")
    settings = keys.mapping("settings")
    config = _config(keys, settings)
    axes = tuple(_axis(config, str(key), found) for key, found in keys.mapping("search").items())
    if not axes:
        raise ConfigError("'search' holds no setting.")
    _check_apart(axes)
    search = Search(
        name=name,
        title=keys.text("title", name),
        attempts=keys.count("attempts", 2, COUNT),
        timeout=keys.seconds("timeout"),
        jobs=keys.count_or_none("jobs"),
        machine=Machine(progress=False, tensorboard=False),
        small=small,
        changed=changed,
        config=config,
        settings=settings,
        axes=axes,
        trials=keys.count("trials", 20, COUNT),
        seed=keys.count("seed", 0, SEED),
        pruner=keys.one_of("pruner", PRUNERS, "median"),
        startup=keys.count("startup", STARTUP, COUNT),
        warmup=keys.count("warmup", config.training.epochs // 3, COUNT_OR_NONE),
    )
    for axis in axes:  # every end and every choice must be a valid value of the setting
        others = {other.key: other.values[0] for other in axes}
        for value in axis.values:
            try:
                search.run({**others, axis.key: value})
            except ConfigError as error:
                raise ConfigError(f"'search.{axis.key}': {error}") from error
    return search


def _config(keys: Keys, settings: Mapping[str, Any]) -> RunConfig:
    """The settings of every run."""
    for key in NOT_SWEPT:
        if key in settings:
            theirs = "run_seed" if key == "seed" else key
            raise ConfigError(f"'settings' holds '{key}': that is a key of the file, '{theirs}'.")
    recipe = keys.one_of("recipe", tuple(VARIANTS), "published")
    config = defaults(str(keys.name("benchmark")), keys.name("model"), str(keys.name("method")), recipe)
    return config.updated(settings).updated({"seed": keys.count("run_seed", 0, SEED)})


def _axis(config: RunConfig, key: str, found: Any) -> Axis:
    where = f"search.{key}"
    names = []
    for part in (part.strip() for part in key.split("+")):
        full = full_keys(config, part)
        if len(full) > 1:
            raise ConfigError(f"'{where}': '{part}' may be {' or '.join(full)}; write one of them in full.")
        if not full or full[0] in NOT_SWEPT:
            known = [*setting_names(config), *(name.rpartition(".")[2] for name in setting_names(config))]
            raise ConfigError(
                f"'{where}': {config.method} has no setting '{part}' to search for.{did_you_mean(part, known)}"
            )
        names.append(full[0])
    if not isinstance(found, Mapping) or len(found) != 1:
        raise ConfigError(
            f"'{where}' is {shown(found)}; expected one of {', '.join(KINDS)}, as in {{log: [1e-4, 1]}}."
        )
    ((kind, values),) = Keys(found, KINDS, f"{where}.").values.items()
    where = f"{where}.{kind}"
    read = _choices(values, where) if kind == "choice" else _ends(kind, values, where)
    return Axis(key, tuple(names), kind, read)


def _ends(kind: str, values: Any, where: str) -> tuple[Any, ...]:
    """The two ends of a range, the smaller one first."""
    number = int if kind == "integer" else (int, float)
    if (
        not isinstance(values, list)
        or len(values) != 2
        or any(isinstance(v, bool) or not isinstance(v, number) or not math.isfinite(v) for v in values)
    ):
        whole = "whole numbers" if kind == "integer" else "numbers"
        raise ConfigError(f"'{where}' is {shown(values)}; expected two {whole}, the least and the most.")
    least, most = values if kind == "integer" else map(float, values)
    if not least < most:
        raise ConfigError(f"'{where}' is {shown(values)}; the second must be larger than the first.")
    if kind == "log" and least <= 0:
        raise ConfigError(f"'{where}' is {shown(values)}; a logarithmic range starts above 0.")
    return least, most


def _choices(values: Any, where: str) -> tuple[Any, ...]:
    single = (bool, int, float, str, type(None))
    if not isinstance(values, list) or not values or not all(isinstance(v, single) for v in values):
        raise ConfigError(
            f"'{where}' is {shown(values)}; expected a list of numbers, words, true, false or null."
        )
    if any(v in values[:i] for i, v in enumerate(values)):
        raise ConfigError(f"'{where}' is {shown(values)}; list every choice once.")
    return tuple(values)


def _check_apart(axes: tuple[Axis, ...]) -> None:
    """Raise `ConfigError` if a setting is searched for twice."""
    owner: dict[str, str] = {}
    for axis in axes:
        for name in axis.names:
            if name in owner:
                raise ConfigError(f"'search': {name} is searched for by '{owner[name]}' and by '{axis.key}'.")
            owner[name] = axis.key


def figures(value: Any) -> str:
    """A setting or a result as tables show it: floats with four significant figures."""
    if value is None:
        return "n/a"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
