"""The benchmarks by name, and the default settings of a run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax.settings import shown
from equirelax_lab.tasks.from_recipe import changes, from_earlier, is_earlier
from equirelax_lab.tasks.methods import choice
from equirelax_lab.tasks.settings import EARLIER, RunConfig
from equirelax_lab.tasks.task import Task


class _Tasks(Mapping[str, type[Task[Any]]]):
    """The benchmarks' classes by name; a file is imported when its benchmark is first used."""

    files: ClassVar[dict[str, str]] = {
        "nbody": "nbody.NBodyTask",
        "mocap": "mocap.MocapTask",
        "modelnet40": "modelnet.ModelNetTask",
        "qm9": "qm9.QM9Task",
        "md17": "md17.MD17Task",
        "smoke": "smoke.SmokeTask",
        "rotmnist": "rotmnist.RotMNISTTask",
    }

    def __getitem__(self, name: str) -> type[Task[Any]]:
        file, _, cls = self.files[name].partition(".")
        found: type[Task[Any]] = getattr(importlib.import_module(f"equirelax_lab.tasks.{file}"), cls)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


TASKS = _Tasks()


def task_class(benchmark: str) -> type[Task[Any]]:
    """The benchmark called `benchmark`. Raises `ConfigError` with a suggestion if there is none."""
    if benchmark not in TASKS:
        raise ConfigError(
            f"Unknown benchmark '{benchmark}'.{did_you_mean(benchmark, list(TASKS))} "
            f"Known: {', '.join(TASKS)}."
        )
    return TASKS[benchmark]


def defaults(
    benchmark: str,
    model: str | None,
    method: str,
    recipe: str = "published",
    trained_as: str | None = None,
) -> RunConfig:
    """The settings of a recipe; `model` None takes the benchmark's first. See `equirelax_lab.recipes.read`.

    Raises:
        ConfigError: The benchmark, model, method or variant is unknown.
    """
    task = task_class(benchmark)
    model = model or next(iter(task.models))
    _check_names(task, model, method)
    if trained_as is not None:
        try:
            choice(trained_as.partition(" ")[0])
        except ConfigError as error:
            raise ConfigError(f"'trained_as' is {shown(trained_as)}: {error}") from error
    return task.defaults(model, method, recipe, trained_as)


def _check_names(task: type[Task[Any]], model: str, method: str) -> None:
    choice(method)
    if model not in task.models:
        raise ConfigError(
            f"Benchmark '{task.name}' has no model '{model}'.{did_you_mean(model, list(task.models))} "
            f"Known: {', '.join(task.models)}."
        )


def base_of(config: RunConfig) -> RunConfig:
    """The settings of a run's recipe; for a run of version 0.1 the published ones."""
    recipe = "published" if config.recipe == EARLIER else config.recipe
    return defaults(config.benchmark, config.model, config.method, recipe, config.trained_as)


def named(config: RunConfig) -> dict[str, Any]:
    """The recipe that a run started from, and the settings in which it differs, in the layout of result.json."""
    differing = {} if config.recipe == EARLIER else changes(config, base_of(config))
    return {
        "variant": config.recipe,
        "trained_as": config.trained_as,
        "changed": {key: {"recipe": before, "here": here} for key, (before, here) in differing.items()},
    }


def check_optimizer(config: RunConfig) -> None:
    """Raise `ConfigError` if a method that is defined by its optimiser (strict-muon) would train with another one."""
    own = choice(config.method).optimizer
    if own not in (None, config.training.optimizer):
        raise ConfigError(
            f"'optimizer' is '{config.training.optimizer}', but {config.method} is strict training with '{own}': leave the "
            f"key out, or take method strict; in a study's file, per_method: {{{config.method}: {{optimizer: {own}}}}}."
        )


def config_from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The configuration from the output of `RunConfig.to_dict`.

    Raises:
        ConfigError: `benchmark`, `model` or `method` is missing, or a key or value is unknown.
    """
    for key in ("benchmark", "model", "method"):
        if not isinstance(values.get(key), str):
            raise ConfigError(f"The configuration does not say which {key} it is for: add the key '{key}'.")
    benchmark, model, method = values["benchmark"], values["model"], values["method"]
    if is_earlier(values) or values.get("recipe") == EARLIER:
        task = task_class(benchmark)
        _check_names(task, model, method)
        return from_earlier(values, task.dataset_type, task.network_types[model])
    recipe, trained_as = values.get("recipe", "published"), values.get("trained_as")
    for key, value in (("recipe", recipe), ("trained_as", trained_as)):
        if not isinstance(value, str) and (key == "recipe" or value is not None):
            raise ConfigError(f"'{key}' is {shown(value)}; expected a name.")
    return defaults(benchmark, model, method, recipe, trained_as).updated(values)


def build_task(config: RunConfig, root: Path | None = None) -> Task[Any]:
    """The benchmark of a configuration."""
    return task_class(config.benchmark)(config, root)
