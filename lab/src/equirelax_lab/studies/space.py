"""What a search looks for: a small YAML file, its keys checked, as one run's settings and the ranges of some of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax.settings import COUNT, COUNT_OR_NONE, JOBS, SEED, shown
from equirelax_lab.recipes import VARIANTS
from equirelax_lab.studies.spec import (
    _changes,
    _count,
    _known,
    _mapping,
    _numbers,
    _one_of,
    _text,
    merged,
    nested,
)
from equirelax_lab.studies.trials import NOT_SWEPT, full_keys
from equirelax_lab.tasks.registry import defaults
from equirelax_lab.tasks.settings import RunConfig, read_yaml

KEYS = (
    "title", "benchmark", "model", "method", "recipe", "settings", "search", "trials", "seed", "run_seed", "pruner", "startup",
    "warmup", "attempts", "jobs", "small",
)  # fmt: skip
KINDS = ("log", "linear", "integer", "choice")
PRUNERS = ("median", "none")
STARTUP = 5
"""Unless the file says it; whatever the number of trials is, which may be raised later."""


@dataclass(frozen=True)
class Axis:
    """A setting that is searched for.

    Attributes:
        key: As in the file. names: The dotted settings that it stands for, which all take its value.
        kind: log and linear (floats between two ends), integer (between two ends) or choice.
        values: The two ends, or the choices.
    """

    key: str
    names: tuple[str, ...]
    kind: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Search:
    """Many runs of one method on one benchmark, in search of settings.

    Attributes:
        name: The file's name without its ending. title: In words.
        config: Settings of every run but for those that are searched for. axes: These.
        trials: How many runs in all. seed: Of the suggestions; the runs' own is in `config`.
        pruner: median ends a run that is behind the median of those before it at the same epoch; none ends none.
        startup: Runs at the beginning whose settings are drawn at random, and that are never ended early.
        warmup: Epochs before which no run is ended.
        attempts: How often a run that breaks is tried in all. jobs: Runs at the same time; None: one for every core.
        definition: What must stay the same for a search to go on, as JSON has it.
        small: Whether it is the small variant. changed: What that changed of the full one, in words.
    """

    name: str
    title: str
    config: RunConfig
    settings: Mapping[str, Any]
    axes: tuple[Axis, ...]
    trials: int
    seed: int
    pruner: str
    startup: int
    warmup: int
    attempts: int
    jobs: int | None
    definition: Mapping[str, Any]
    small: bool = False
    changed: tuple[str, ...] = ()

    def changes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that `values` (by the keys of the axes) stand for, in the layout of config.yaml."""
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

    Its keys are those of `Search`; `benchmark`, `model`, `method`, `settings` and `run_seed` are those of every run, and
    `search` holds the settings that are searched for, as in {strength.dual_lr: {log: [1e-5, 1e-2]}}. Several that take
    the same value are joined by +. `small` changes keys for a quick variant.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (with a suggestion) or missing, a value is of the wrong kind
            or outside of its range; `small` is asked for, and there is none.
    """
    try:
        values = _numbers(read_yaml(path))
        variant = values.pop("small", None)
        if variant is not None and not isinstance(variant, Mapping):
            raise ConfigError(f"'small' should be a mapping of keys to values, not {shown(variant)}.")
        if not small:
            return _search(path.stem, values)
        if not variant:
            raise ConfigError("there is no small variant: the file has no key 'small'.")
        _known(variant, KEYS[:-1], "small.")
        return _search(path.stem, merged(values, variant), True, _changes(values, variant))
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if str(path) in text else f"{path}: {text}") from error


def _search(
    name: str, values: Mapping[str, Any], small: bool = False, changed: tuple[str, ...] = ()
) -> Search:
    _known(values, KEYS, "")
    for key in ("benchmark", "method", "search"):
        if key not in values:
            raise ConfigError(f"'{key}' is missing.")
    config, settings = _config(values)
    axes = tuple(_axis(config, str(key), found) for key, found in _mapping(values, "search", "").items())
    if not axes:
        raise ConfigError("'search' holds no setting.")
    _check_apart(axes)
    epochs = config.training.epochs
    search = Search(
        name=name,
        title=_text(values, "title", name),
        config=config,
        settings=settings,
        axes=axes,
        trials=_count(values.get("trials", 20), "trials", COUNT),
        seed=_count(values.get("seed", 0), "seed", SEED),
        pruner=_one_of(values.get("pruner", "median"), PRUNERS, "pruner"),
        startup=_count(values.get("startup", STARTUP), "startup", COUNT),
        warmup=_count(values.get("warmup", epochs // 3), "warmup", COUNT_OR_NONE),
        attempts=_count(values.get("attempts", 2), "attempts", COUNT),
        jobs=None if values.get("jobs") is None else _count(values["jobs"], "jobs", JOBS),
        definition={},
        small=small,
        changed=changed,
    )
    for axis in axes:  # every end and every choice must be a value that the setting may have
        others = {other.key: other.values[0] for other in axes}
        for value in axis.values:
            try:
                search.run({**others, axis.key: value})
            except ConfigError as error:
                raise ConfigError(f"'search.{axis.key}': {error}") from error
    return replace(search, definition=_definition(search))


def _config(values: Mapping[str, Any]) -> tuple[RunConfig, Mapping[str, Any]]:
    """The settings of every run, and those of them that the file changes."""
    names: dict[str, str | None] = {}
    for key in ("benchmark", "model", "method"):
        found = values.get(key)
        if found is not None and not isinstance(found, str):
            raise ConfigError(f"'{key}' is {shown(found)}; expected a name.")
        names[key] = found
    settings = _mapping(values, "settings", "")
    for key in NOT_SWEPT:
        if key in settings:
            raise ConfigError(
                f"'settings' holds '{key}': that is a key of the file, '{'run_seed' if key == 'seed' else key}'."
            )
    recipe = _one_of(values.get("recipe", "published"), tuple(VARIANTS), "recipe")
    config = defaults(str(names["benchmark"]), names["model"], str(names["method"]), recipe).updated(settings)
    return config.updated({"seed": _count(values.get("run_seed", 0), "run_seed", SEED)}), settings


def _axis(config: RunConfig, key: str, found: Any) -> Axis:
    where = f"search.{key}"
    names = []
    for part in (part.strip() for part in key.split("+")):
        full = full_keys(config, part)
        if len(full) > 1:
            raise ConfigError(f"'{where}': '{part}' may be {' or '.join(full)}; write one of them in full.")
        if not full or full[0] in NOT_SWEPT:
            known = [name for section, value in config.to_dict().items() for name in _inside(section, value)]
            raise ConfigError(
                f"'{where}': {config.method} has no setting '{part}' to search for.{did_you_mean(part, known)}"
            )
        names.append(full[0])
    if not isinstance(found, Mapping) or len(found) != 1:
        raise ConfigError(
            f"'{where}' is {shown(found)}; expected one of {', '.join(KINDS)}, as in {{log: [1e-4, 1]}}."
        )
    ((kind, values),) = found.items()
    if kind not in KINDS:
        raise ConfigError(
            f"Unknown key '{where}.{kind}'.{did_you_mean(str(kind), KINDS)} Known: {', '.join(KINDS)}."
        )
    where = f"{where}.{kind}"
    return Axis(
        key, tuple(names), kind, _choices(values, where) if kind == "choice" else _ends(kind, values, where)
    )


def _ends(kind: str, values: Any, where: str) -> tuple[Any, ...]:
    """Two ends, the smaller one first."""
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
        raise ConfigError(f"'{where}' is {shown(values)}; every choice stands there once.")
    return tuple(values)


def _check_apart(axes: tuple[Axis, ...]) -> None:
    """No setting is searched for twice."""
    owner: dict[str, str] = {}
    for axis in axes:
        for name in axis.names:
            if name in owner:
                raise ConfigError(f"'search': {name} is searched for by '{owner[name]}' and by '{axis.key}'.")
            owner[name] = axis.key


def _definition(search: Search) -> dict[str, Any]:
    """As plain JSON. More trials, jobs or attempts make no other search."""
    config = search.config
    return {
        "benchmark": config.benchmark,
        "model": config.model,
        "method": config.method,
        "recipe": config.recipe,
        "settings": dict(search.settings),
        "run_seed": config.seed,
        "search": {axis.key: {axis.kind: list(axis.values)} for axis in search.axes},
        "seed": search.seed,
        "pruner": search.pruner,
        "startup": search.startup,
        "warmup": search.warmup,
    }


def _inside(section: str, value: Any) -> list[str]:
    return [f"{section}.{key}" for key in value] + list(value) if isinstance(value, dict) else [section]


def figures(value: Any) -> str:
    """A setting or a result as tables show it: floats with four figures."""
    if value is None:
        return "n/a"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
