"""The samples of a run."""

from __future__ import annotations

from pathlib import Path

from equirelax.errors import ConfigError
from equirelax_lab.data import Samples
from equirelax_lab.tasks.registry import build_task
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training.loader import EpochLoader
from equirelax_lab.training.machine import Machine


def load_samples(config: RunConfig, root: Path | None, machine: Machine) -> tuple[Samples, Samples, int]:
    """Load the training samples and the validation samples, and compute the number of optimizer steps of an epoch.

    Raises:
        ConfigError: There are fewer training samples than a step needs.
        DataError: Data is missing.
    """
    training = config.training
    task = build_task(config, root)
    train_data, val = task.load("train"), task.load("val")
    steps = EpochLoader(
        train_data,
        task.train_batch,
        training.batch_size,
        config.seed,
        world=machine.devices,
        smallest=task.smallest_batch,
        parts=machine.accumulate,
        drop_last=training.drop_last,
    ).batches
    if not steps:
        least = task.smallest_batch * machine.devices * machine.accumulate
        raise ConfigError(
            f"A training step of {config.model} needs {least} samples or more; "
            f"batch_size is {training.batch_size}, and there are {len(train_data)} training samples."
        )
    return train_data, val, steps
