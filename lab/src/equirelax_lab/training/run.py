"""One run, from settings to result.json."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from equirelax.errors import NonFiniteError
from equirelax.files import remove_left
from equirelax_lab.data import Samples
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training import provenance
from equirelax_lab.training.assembly import assemble
from equirelax_lab.training.checkpoint import read_state
from equirelax_lab.training.conclusion import conclude
from equirelax_lab.training.epoch_end import EpochEnd
from equirelax_lab.training.folder import CONFIG, LAST, RESULT, check_folder
from equirelax_lab.training.launch import global_rank, launched
from equirelax_lab.training.lock import LOCK, locked
from equirelax_lab.training.loggers import Loggers, quiet_event_thread
from equirelax_lab.training.loop import Loop
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.progress import EpochProgress
from equirelax_lab.training.run_loggers import run_loggers
from equirelax_lab.training.samples import load_samples
from equirelax_lab.training.stopping import StopRequest, graceful_interrupt
from equirelax_lab.training.trackers import check_trackers

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def train(
    config: RunConfig,
    folder: Path,
    root: Path | None = None,
    *,
    resume: bool = False,
    machine: Machine | None = None,
) -> dict[str, Any] | None:
    """Train, select, test, and write `config.yaml`, `metrics.csv`, `last.ckpt`, `best.ckpt` and `result.json` into `folder`.

    Args:
        config: The run's settings.
        folder: The run's own folder.
        root: Data root; None takes EQUIRELAX_DATA or the user's cache folder.
        resume: Whether to continue from `last.ckpt` if there is one; the result of a finished run is returned as it is.
        machine: Where and how the run executes.

    Returns:
        The content of result.json ({} in all ranks but the first); None if the run was interrupted.

    Raises:
        ConfigError: The folder holds another run or one with other settings, or the settings do not work here.
        FolderInUseError: Another process writes to the folder.
        DataError: Data is missing.
        CheckpointError: The checkpoint cannot be resumed from.
        NonFiniteError: A loss, gradient or weight was not finite, or the loss exploded. The message names the step and the
            module in which it began, and what was kept.
    """
    machine = (machine or Machine()).resolved(torch.cuda.device_count())
    check_trackers(machine)
    # The first rank checks and locks the folder before it starts the others.
    if global_rank():
        return _train(config, folder, root, resume, machine)
    if (folder / CONFIG).exists() and (folder / RESULT).exists():  # no process writes to a finished run
        remove_left(folder / LOCK)  # left by a process that was killed just before its end
        return _train(config, folder, root, resume, machine)
    with locked(folder):
        return _train(config, folder, root, resume, machine)


def _train(
    config: RunConfig, folder: Path, root: Path | None, resume: bool, machine: Machine
) -> dict[str, Any] | None:
    """`train` in a folder that no other process writes to."""
    finished = check_folder(config, folder, resume) if global_rank() == 0 else None
    if finished is not None:
        return finished
    # Read now: the source tree may change during the run, but the imported code does not.
    commit = provenance.commit()
    torch.set_num_threads(machine.threads)
    train_data, val, steps = load_samples(config, root, machine)
    assembly = assemble(config, root, steps_per_epoch=steps)
    if global_rank() == 0:
        config.write(folder / CONFIG)
    with graceful_interrupt() as request, launched(machine) as fabric:
        loop = Loop(assembly, train_data, fabric, machine)
        end = _fit(loop, train_data, val, folder, machine, request)
    if loop.completed < config.training.epochs:
        return None
    return conclude(assembly, end, val, folder, commit) if global_rank() == 0 else {}


def _fit(
    loop: Loop, train: Samples, val: Samples, folder: Path, machine: Machine, request: StopRequest
) -> EpochEnd:
    """Train the remaining epochs, or until a stop is requested.

    Raises:
        NonFiniteError: A number is not finite or the loss exploded; the message says where it began, and what was kept.
    """
    config, checkpoint = loop.assembly.config, folder / LAST
    state = read_state(checkpoint) if checkpoint.exists() else None
    start = 0 if state is None else state["completed"]
    with (
        quiet_event_thread(),
        contextlib.closing(_loggers(loop, folder, machine, start)) as loggers,
    ):
        end = EpochEnd(loop, train, val, folder, loggers)
        if state is not None:
            end.load_state_dict(state)
            loop.load_state_dict(state)
        try:
            stopping = _any_rank(loop.fabric, request.made)
            while loop.completed < config.training.epochs and not stopping:
                columns = loop.epoch()
                stopping = _any_rank(loop.fabric, request.made)
                end(columns, stopping)
        except (NonFiniteError, RuntimeError) as error:
            if not loop.divergence.explains(error):
                raise
            origin = loop.divergence.origin()
            if global_rank() == 0:
                end.write_best()
            raise NonFiniteError(
                f"{error}{origin} {end.kept()} Lower learning_rate, or set gradient_clip, and name another folder "
                "with --out."
            ) from error
    return end


def _loggers(loop: Loop, folder: Path, machine: Machine, start: int) -> Loggers:
    """The loggers of the epochs from `start` on; only the first rank has any."""
    if global_rank():
        return Loggers()
    config = loop.assembly.config
    loggers = run_loggers(config, folder, machine, start)
    if machine.progress:
        label = f"{config.benchmark} {config.model} {config.method} seed {config.seed}"
        metric = loop.assembly.task.metric.heading
        progress = EpochProgress(start, config.training.epochs, loop.loader.batches, label, metric)
        loop.on_step = progress.step
        loggers.append(progress)
    return Loggers(*loggers)


def _any_rank(fabric: Fabric, flag: bool) -> bool:
    """Whether the flag is set in any rank."""
    if fabric.world_size == 1:
        return flag
    return bool(fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum"))
