"""The loggers of a run: its table, TensorBoard's events, and services."""

from __future__ import annotations

import sys
from pathlib import Path

from equirelax_lab.extras import install
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training.loggers import EpochTable, Events, Logger
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.trackers import trackers


def run_loggers(config: RunConfig, folder: Path, machine: Machine, start: int) -> list[Logger]:
    """All loggers except the one that writes to the terminal.

    Args:
        config: The run's settings.
        folder: The run's folder.
        machine: Where the run executes, which determines the loggers.
        start: Number of completed epochs, whose rows are already written.
    """
    loggers: list[Logger] = [EpochTable(folder, start)]
    if machine.tensorboard:
        try:
            loggers.append(Events(folder))
        except ModuleNotFoundError as error:
            if error.name != "tensorboard":
                raise
            words = f"No TensorBoard events: the package is missing ({install('tensorboard')}); metrics.csv has the same."
            print(words, file=sys.stderr)
    return loggers + list(trackers(machine, folder, config))
