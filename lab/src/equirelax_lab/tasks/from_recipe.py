"""A run's settings from a recipe, or from the full settings of a run of version 0.1, which had no recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equirelax.errors import ConfigError
from equirelax.settings import Settings
from equirelax_lab.recipes import Recipe
from equirelax_lab.tasks.methods import choice
from equirelax_lab.tasks.settings import (
    EARLIER,
    NAMES,
    Dataset,
    Network,
    ResidualSettings,
    RunConfig,
    Training,
    section,
)


def from_recipe(recipe: Recipe, dataset: type[Dataset], network: type[Network]) -> RunConfig:
    """The settings of a recipe, with seed 0.

    Args:
        recipe: The resolved recipe.
        dataset, network: The classes of these sections.

    Raises:
        ConfigError: The recipe has a key or a value that the settings do not allow.
    """
    try:
        return _config(
            recipe.benchmark,
            recipe.model,
            recipe.method,
            recipe.settings,
            (dataset, network),
            recipe.variant,
            recipe.trained_as,
        )
    except ConfigError as error:
        where = f"{recipe.benchmark} {recipe.model} {recipe.method} {recipe.variant}"
        raise ConfigError(f"The recipe {where}: {error}") from error


def is_earlier(values: Mapping[str, Any]) -> bool:
    """Whether `values` are the complete settings of a run, written by version 0.1."""
    return "recipe" not in values and all(
        key in values for key in ("seed", "epochs", "dataset", "network", "residual", "strength")
    )


def from_earlier(values: Mapping[str, Any], dataset: type[Dataset], network: type[Network]) -> RunConfig:
    """The settings of a run of version 0.1. Settings that it did not have take their defaults, which reproduce its behaviour."""
    own = {key: value for key, value in values.items() if key not in (*NAMES, "seed")}
    config = _config(
        values["benchmark"], values["model"], values["method"], own, (dataset, network), EARLIER, None
    )
    return config.updated({"seed": values["seed"]})


def _config(
    benchmark: str,
    model: str,
    method: str,
    values: Mapping[str, Any],
    types: tuple[type[Dataset], type[Network]],
    variant: str,
    trained_as: str | None,
) -> RunConfig:
    kinds: dict[str, type[Settings]] = {
        "dataset": types[0],
        "network": types[1],
        "residual": ResidualSettings,
        "strength": choice(method).settings,
    }
    training = {key: value for key, value in values.items() if key not in kinds}
    sections: dict[str, Any] = {
        name: kind.of(section(values, name), f"'{name}.{{}}'", ConfigError) for name, kind in kinds.items()
    }
    return RunConfig(
        benchmark=benchmark,
        model=model,
        method=method,
        training=Training.of(training, "'{}'"),
        recipe=variant,
        trained_as=trained_as,
        **sections,
    )


def changes(config: RunConfig, base: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return, for every setting in which a run differs from its recipe: dotted key -> (value of the recipe, value of the run).

    A value is None if the recipe or the run does not have the setting, since kinds of residuals differ in their settings.
    """
    found: dict[str, tuple[Any, Any]] = {}
    ours, theirs = config.to_dict(), base.to_dict()
    for key, value in theirs.items():
        if key in (*NAMES, "seed"):
            continue
        if not isinstance(value, dict):
            if ours[key] != value:
                found[key] = (value, ours[key])
            continue
        for inner in {**value, **ours[key]}:
            before, here = value.get(inner), ours[key].get(inner)
            if inner not in value or here != before:
                found[f"{key}.{inner}"] = (before, here)
    return found
