"""The benchmarks by name, and the default settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from equirelax.benchmarks.md17 import MD17Task
from equirelax.benchmarks.mocap import MocapTask
from equirelax.benchmarks.modelnet import ModelNetTask
from equirelax.benchmarks.nbody import NBodyTask
from equirelax.benchmarks.qm9 import QM9Task
from equirelax.benchmarks.rotmnist import RotMNISTTask
from equirelax.benchmarks.settings import RunConfig, Training
from equirelax.benchmarks.smoke import SmokeTask
from equirelax.benchmarks.strengths import choice
from equirelax.benchmarks.task import Task
from equirelax.errors import ConfigError
from equirelax.files import did_you_mean

ADAM_RATE = 1e-3

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (NBodyTask, MocapTask, ModelNetTask, QM9Task, MD17Task, SmokeTask, RotMNISTTask)
}


def task_class(benchmark: str) -> type[Task]:
    """The benchmark called `benchmark`. Raises `ConfigError` with a suggestion if there is none."""
    if benchmark not in TASKS:
        raise ConfigError(
            f"Unknown benchmark '{benchmark}'.{did_you_mean(benchmark, list(TASKS))} "
            f"Known: {', '.join(TASKS)}."
        )
    return TASKS[benchmark]


def defaults(benchmark: str, model: str | None, method: str) -> RunConfig:
    """The papers' settings; `model` None takes the benchmark's first.

    Raises:
        ConfigError: an unknown benchmark, model or method.
    """
    task = task_class(benchmark)
    choice(method)
    model = model or next(iter(task.models))
    if model not in task.models:
        raise ConfigError(
            f"Benchmark '{benchmark}' has no model '{model}'.{did_you_mean(model, list(task.models))} "
            f"Known: {', '.join(task.models)}."
        )
    optimizer = choice(method).optimizer
    if optimizer is None:
        return task.defaults(model, method)
    strict = task.defaults(model, "strict")
    return replace(strict, method=method, training=_optimised(strict.training, optimizer))


def _optimised(training: Training, optimizer: str) -> Training:
    """The settings of strict training with another optimiser, which takes Adam's learning rates.

    Those of sgd do not carry over: in their place stands 1e-3, CR's of VN-PointNet with Adam, and the last learning rate
    keeps its ratio to the first.
    """
    changed = replace(training, optimizer=optimizer)  # type: ignore[arg-type]  # one of the names that it may be
    if training.optimizer != "sgd":
        return changed
    last = ADAM_RATE * training.final_learning_rate / training.learning_rate
    return replace(changed, learning_rate=ADAM_RATE, final_learning_rate=last, momentum=0.0)


def check_optimizer(config: RunConfig) -> None:
    """Raise `ConfigError` where a method that is an optimiser's (strict-muon) is to train with another one."""
    own = choice(config.method).optimizer
    if own not in (None, config.training.optimizer):
        raise ConfigError(
            f"'optimizer' is '{config.training.optimizer}', but {config.method} is strict training with '{own}': leave the "
            f"key out, or take method strict; in a study's file, per_method: {{{config.method}: {{optimizer: {own}}}}}."
        )


def config_from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The configuration that `RunConfig.to_dict` gave.

    Raises:
        ConfigError: `benchmark` or `method` is missing, or a key or value is not known.
    """
    for key in ("benchmark", "model", "method"):
        if not isinstance(values.get(key), str):
            raise ConfigError(f"The configuration does not say which {key} it is for: add the key '{key}'.")
    return defaults(values["benchmark"], values["model"], values["method"]).updated(values)


def build_task(config: RunConfig, root: Path | None = None) -> Task:
    """The benchmark of a configuration."""
    return task_class(config.benchmark)(config, root)
