"""What a search has found, in words, as search.json and as a study of the best settings."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from equirelax_lab.studies.space import Search, figures
from equirelax_lab.studies.spec import merged
from equirelax_lab.studies.suggestions import Record
from equirelax_lab.tasks.methods import is_strict
from equirelax_lab.tasks.registry import base_of
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.tasks.task import Metric

SEEDS = 3
"""Of the final runs in best.yaml."""
SHARED, OWN = ("dataset", "network"), ("strength", "residual")
"""Sections of settings that the strict runs of best.yaml share whatever was searched for, and that they do not have."""


def trial_folder(number: int) -> str:
    """Of a trial, in the search's folder."""
    return f"trial-{number:04d}"


def best_of(records: Sequence[Record], metric: Metric) -> Record | None:
    """The best of those that are finished."""
    best: Record | None = None
    for record in records:
        if record.status == "finished" and record.value is not None:
            than = metric.worst if best is None or best.value is None else best.value
            best = record if metric.better(record.value, than) else best
    return best


def described(record: Record, search: Search) -> str:
    """How a trial ended, in words."""
    value, epochs = figures(record.value), search.config.training.epochs
    words = {
        "finished": value,
        "pruned": f"{value}, ended after epoch {record.epochs} of {epochs}",
        "failed": f"failed: {record.reason or 'for an unknown reason'}",
        "running": f"{value}, not ended, epoch {record.epochs} of {epochs}",
    }
    values = ", ".join(f"{key} {figures(found)}" for key, found in record.values.items())
    return f"{words[record.status]} ({values})"


def outcome(search: Search, metric: Metric, column: str, records: Sequence[Record]) -> dict[str, Any]:
    """What search.json holds."""
    best = best_of(records, metric)
    return {
        "title": search.title,
        "search": dict(search.definition),
        "small": search.small,
        "metric": metric.to_dict(),
        "optimised": column,
        "trials": [{**vars(record), "folder": trial_folder(record.number)} for record in records],
        "best": None if best is None else {**vars(best), "folder": trial_folder(best.number)},
        "command": None if best is None else command(search.run(best.values)),
        "left": max(0, search.trials - sum(record.status != "running" for record in records)),
    }


def command(config: RunConfig) -> str:
    """The command line of a run: `equirelax train` with every setting that is not a default."""
    usual = base_of(config).to_dict()
    words = [f"equirelax train {config.benchmark} --model {config.model} --method {config.method}"]
    words += [f"--recipe {config.recipe}"] if config.recipe != "published" else []
    words += [f"--trained_as {shlex.quote(config.trained_as)}"] if config.trained_as else []
    for key, value in config.to_dict().items():
        inside = value if isinstance(value, dict) else {"": value}
        before = usual[key] if isinstance(value, dict) else {"": usual[key]}
        for inner, own in inside.items():
            if own != before[inner]:
                words.append(f"--{key}{'.' if inner else ''}{inner} {_word(own)}")
    return " ".join(words)


def final_study(search: Search, best: Record, trials: int) -> str:
    """A study of the best settings over several seeds, beside strict runs on the same data with the same network."""
    config, changes = search.config, search.changes(best.values)
    settings = merged(search.settings, {key: value for key, value in changes.items() if key in SHARED})
    # of the strict runs neither the strength nor what was searched for is asked
    shared = {key: value for key, value in settings.items() if key not in OWN}
    own = {key: value for key, value in settings.items() if key in OWN}
    own = merged(own, {key: value for key, value in changes.items() if key not in SHARED})
    alone = is_strict(config.method)
    content = {
        "title": f"{search.title}: the best of {trials} trials",
        "benchmark": config.benchmark,
        "models": [config.model],
        "methods": [config.method] if alone else ["strict", config.method],
        "seeds": SEEDS,
        "recipe": config.recipe,
        "settings": shared,
        "per_method": {config.method: own},
    }
    return yaml.safe_dump(content, sort_keys=False)


def _word(value: Any) -> str:
    """A value as a shell and the command line read it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else shlex.quote(str(value))
