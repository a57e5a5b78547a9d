"""Loggers for services that track many runs: Weights & Biases and MLflow, which are imported only when requested.

Both read their own environment variables, which say where the runs go. A resumed run keeps its identity, which is stored in its
folder. If a service fails after the run has begun, this is reported once, and the run continues without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equirelax.errors import ConfigError
from equirelax.files import write_text
from equirelax_lab.extras import install
from equirelax_lab.training.folder import read_result
from equirelax_lab.training.machine import Machine

if TYPE_CHECKING:
    from equirelax_lab.tasks.settings import RunConfig

IDENTITIES = "trackers.json"
"""The file in a run's folder with the run's identities in the services."""
PROJECT = "equirelax"
"""The project, or experiment, of runs if the service's environment variables name none."""
LONGEST = 500
"""Longest parameter, in characters, that every store of MLflow accepts."""


def check_trackers(machine: Machine) -> None:
    """Raise `ConfigError`, before anything is written, if the package of a requested service is not installed."""
    for name in TRACKERS:
        if getattr(machine, name) and importlib.util.find_spec(name) is None:
            raise ConfigError(f"--{name} needs the package '{name}': {install(name)}.")


def trackers(machine: Machine, folder: Path, config: RunConfig) -> Iterator[Tracker]:
    """The requested services, each begun with the run's settings."""
    for name, tracker in TRACKERS.items():
        if getattr(machine, name):
            yield tracker(folder, config)


class Tracker(ABC):
    """A run in a service.

    Args:
        folder: The run's folder.
        config: The run's settings.

    Raises:
        ConfigError: The service refuses the run: nobody is logged in, or its address does not answer.
    """

    name: str
    remedy: str

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.label = folder, f"{config.model} {config.method} seed {config.seed}"
        self._lost = False
        try:
            self._begin(config)
        # Services raise errors of many classes, including those of their transport.
        except Exception as error:
            raise ConfigError(
                f"--{self.name}: {_first_line(error)} {self.remedy} Then add --resume."
            ) from error

    def log(self, epoch: int, row: Mapping[str, float]) -> None:
        """Send the row of an epoch."""
        self._safely(lambda: self._send(epoch, row))

    def close(self) -> None:
        """End the run in the service."""
        self._safely(self._end)

    @abstractmethod
    def _begin(self, config: RunConfig) -> None:
        """Begin the run in the service."""

    @abstractmethod
    def _send(self, epoch: int, row: Mapping[str, float]) -> None:
        """Send a row."""

    @abstractmethod
    def _end(self) -> None:
        """End the run."""

    def _safely(self, call: Callable[[], None]) -> None:
        if self._lost:
            return
        try:
            call()
        except Exception as error:
            self._lost = True
            text = f"{self.name} fails and gets no more of this run; metrics.csv has it all: {_first_line(error)}"
            print(text, file=sys.stderr, flush=True)

    def _identity(self, new: Callable[[], str]) -> tuple[str, bool]:
        """The run's identity in the service, and whether it is new."""
        path = self.folder / IDENTITIES
        known = read_result(path) if path.exists() else {}
        if self.name in known:
            return str(known[self.name]), False
        made = new()
        write_text(path, json.dumps({**known, self.name: made}) + "\n")
        return made, True


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases, which honours WANDB_PROJECT, WANDB_MODE and its other variables."""

    name = "wandb"
    remedy = "Log in with `wandb login`, or set WANDB_MODE=offline to keep the run on this disk."

    def _begin(self, config: RunConfig) -> None:
        wandb: Any = importlib.import_module("wandb")
        identity, _ = self._identity(lambda: secrets.token_hex(8))
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self.folder.resolve().parent.name,
            name=self.label,
            id=identity,
            resume="allow",
            dir=str(self.folder),
            config=config.to_dict(),
        )
        self.run.define_metric("*", step_metric="epoch")

    def _send(self, epoch: int, row: Mapping[str, float]) -> None:
        self.run.log({"epoch": epoch, **row})

    def _end(self) -> None:
        self.run.finish()


class MLflow(Tracker):
    """A run of MLflow, which honours MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME."""

    name = "mlflow"
    remedy = "MLFLOW_TRACKING_URI names where runs go."

    def _begin(self, config: RunConfig) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self.entities: Any = importlib.import_module("mlflow.entities")
        self.client: Any = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        self.run, new = self._identity(
            lambda: str(self.client.create_run(experiment, run_name=self.label).info.run_id)
        )
        if new:
            settings = (
                self.entities.Param(key, str(value)[:LONGEST]) for key, value in _flat(config.to_dict())
            )
            self.client.log_batch(self.run, params=list(settings))
        else:
            self.client.update_run(self.run, status="RUNNING")

    def _send(self, epoch: int, row: Mapping[str, float]) -> None:
        now = round(1000 * time.time())
        metrics = [self.entities.Metric(key, value, now, epoch) for key, value in row.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def _end(self) -> None:
        self.client.set_terminated(self.run)


TRACKERS: dict[str, type[Tracker]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}
"""Flag, field of `Machine`, package and extra -> the service."""


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of settings, and their values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0].rstrip('.')}."
