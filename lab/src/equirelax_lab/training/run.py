"""One run, from settings to result.json."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from equirelax.auditing import audit
from equirelax.errors import ConfigError, NonFiniteError
from equirelax.files import remove_left, write_text
from equirelax.relaxation import project
from equirelax_lab.data import Samples
from equirelax_lab.extras import install
from equirelax_lab.tasks.registry import build_task, named
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training import provenance
from equirelax_lab.training.assembly import Assembly, assemble
from equirelax_lab.training.checkpoint import Selected, load_weights, read_state, write_selected
from equirelax_lab.training.cost import inference_cost
from equirelax_lab.training.dynamics import dynamics, first_lag, loss_spikes, read_metrics
from equirelax_lab.training.epoch_end import EpochEnd
from equirelax_lab.training.evaluation import evaluate_all, headline_of
from equirelax_lab.training.folder import BEST, BEST_AVERAGE, CONFIG, LAST, METRICS, RESULT, check_folder
from equirelax_lab.training.loader import EpochLoader
from equirelax_lab.training.lock import LOCK, locked
from equirelax_lab.training.loggers import EpochTable, Events, Logger, Loggers, room_for_events
from equirelax_lab.training.loop import Loop
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.progress import EpochProgress
from equirelax_lab.training.stopping import StopRequest, graceful_interrupt
from equirelax_lab.training.trackers import check_trackers, trackers

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
    # The first rank starts the others, after it has checked and locked the folder.
    if global_rank():
        return _train(config, folder, root, resume, machine)
    if (folder / CONFIG).exists() and (folder / RESULT).exists():  # no process writes to a finished run
        remove_left(folder / LOCK)  # left by a process that was killed at its very end
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
    # Read now: the source tree may change during the run, but not what was imported.
    commit = provenance.commit()
    torch.set_num_threads(machine.threads)
    assembly, train_data, val = _build(config, root, machine)
    if global_rank() == 0:
        config.write(folder / CONFIG)
    with graceful_interrupt() as request, _fabric(machine) as fabric:
        loop = Loop(assembly, train_data, fabric, machine)
        end = _fit(loop, train_data, val, folder, machine, request)
    if loop.completed < config.training.epochs:
        return None
    return _conclude(assembly, end, val, folder, commit) if global_rank() == 0 else {}


def _build(config: RunConfig, root: Path | None, machine: Machine) -> tuple[Assembly, Samples, Samples]:
    """The run's objects, training samples and validation samples."""
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
    return assemble(config, root, steps_per_epoch=steps), train_data, val


@contextlib.contextmanager
def _fabric(machine: Machine) -> Iterator[Fabric]:
    """Lightning Fabric with every process started; the further ones end with this one's errors.

    Raises:
        ConfigError: The accelerator, number of devices or strategy is not available here.
    """
    from lightning.fabric import Fabric  # takes seconds to import

    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")  # about the data loaders that we do not use
        try:
            fabric = Fabric(
                accelerator=machine.accelerator,
                devices=machine.devices,
                strategy=machine.strategy,
            )
        except (ValueError, RuntimeError, TypeError) as error:
            raise ConfigError(
                f"--accelerator {machine.accelerator} --devices {machine.devices} --strategy {machine.strategy} does not "
                f"work here: {' '.join(str(error).split())}"
            ) from error
        fabric.launch()
        try:
            yield fabric
        except BaseException:
            for process in getattr(fabric.strategy.launcher, "procs", ()):
                process.kill()  # it may wait for this one for ever
            raise


def _fit(
    loop: Loop, train: Samples, val: Samples, folder: Path, machine: Machine, request: StopRequest
) -> EpochEnd:
    """Train the epochs that are left, or until a stop is requested.

    Raises:
        NonFiniteError: A number is not finite or the loss exploded; says where it began, and what was kept.
    """
    config, checkpoint = loop.assembly.config, folder / LAST
    state = read_state(checkpoint) if checkpoint.exists() else None
    start = 0 if state is None else state["completed"]
    with (
        room_for_events(folder),
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
    """What receives the metrics of the epochs from `start` on: in the first rank alone."""
    if global_rank():
        return Loggers()
    config = loop.assembly.config
    loggers: list[Logger] = [EpochTable(folder, start)]
    if machine.tensorboard:
        try:
            loggers.append(Events(folder))
        except ModuleNotFoundError as error:
            if error.name != "tensorboard":
                raise
            words = f"No TensorBoard events: the package is missing ({install('tensorboard')}); metrics.csv has the same."
            print(words, file=sys.stderr)
    loggers += trackers(machine, folder, config)
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


def global_rank() -> int:
    """The number of this process in a distributed run; 0 in any other run."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def _conclude(
    assembly: Assembly, end: EpochEnd, val: Samples, folder: Path, commit: str | None
) -> dict[str, Any]:
    """Take the selected weights, read the test set once, audit, and write the result."""
    config, task = assembly.config, assembly.task
    selected = end.selection.selected
    if selected is None:
        raise NonFiniteError(
            "No validation had a finite value: there is nothing to select. Lower learning_rate."
        )
    assembly.model.to("cpu")
    test = task.load("test")
    average = end.average_selection.selected
    averaged = average and _tested(assembly, average, val, test, folder / BEST_AVERAGE)
    tested = _tested(assembly, selected, val, test, folder / BEST)
    rows = read_metrics(folder / METRICS, config.training.epochs)
    result = {
        "benchmark": config.benchmark,
        "model": config.model,
        "method": config.method,
        "seed": config.seed,
        "recipe": named(config),
        "metric": task.metric.to_dict(),
        "val": tested["val"],
        "test": tested["test"],
        "metrics": tested["metrics"],
        "averaged": averaged and {"decay": config.training.ema, **averaged},
        "conditions": {
            name: evaluate_all(assembly, change(test)) for name, change in task.conditions().items()
        },
        "inference": inference_cost(assembly, test),
        "equivariance_error": equivariance_error(assembly),
        "parameters": {"strict": assembly.strict_parameters, "relaxed": assembly.relaxed_parameters},
        "epochs": config.training.epochs,
        "selected_epoch": tested["selected_epoch"],
        "gammas": tested["gammas"],
        "dynamics": dynamics(rows),
        "loss_spikes": loss_spikes(rows),
        "lag": first_lag(rows),
        "scaled_down": task.scaled_down(),
        "seconds": round(end.seconds, 1),
        "commit": commit,
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
        "config": config.to_dict(),
    }
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def _tested(
    assembly: Assembly, selected: Selected, val: Samples, test: Samples, path: Path
) -> dict[str, Any]:
    """Write the selected weights to `path`, load them, and measure them on both sets."""
    write_selected(path, assembly.config, selected)
    load_weights(assembly, selected.weights, str(path))
    val_values, test_values = evaluate_all(assembly, val), evaluate_all(assembly, test)
    return {
        "val": headline_of(assembly.task, val_values),
        "test": headline_of(assembly.task, test_values),
        "metrics": {"val": val_values, "test": test_values},
        "selected_epoch": selected.epoch + 1,
        "gammas": strengths(assembly),
    }


def strengths(assembly: Assembly) -> dict[str, float]:
    """Residual -> gamma."""
    if assembly.relaxation is None:
        return {}
    return dict(zip(assembly.relaxation.residuals, assembly.relaxation.gammas().tolist(), strict=True))


def equivariance_error(assembly: Assembly) -> dict[str, Any] | None:
    """The relative equivariance error in float64 before and after projection; the model is projected by it.

    Returns:
        {before, after, group, dtype}; None where the task's group does not act exactly on its samples.
    """
    if not assembly.task.auditable:
        return None
    case = assembly.task.audit_case()

    def measure() -> float:
        report = audit(
            assembly.model,
            case.sample,
            case.in_rep,
            case.out_rep,
            case.group,
            seed=0,
            per_layer=False,
            lie=False,
        )
        return float(report.relative)

    with case.headed(assembly.model):
        before = measure()
        after = before
        if assembly.relaxation is not None:
            project(assembly.model)
            after = measure()
    return {"before": before, "after": after, "group": case.group.name, "dtype": "float64"}
