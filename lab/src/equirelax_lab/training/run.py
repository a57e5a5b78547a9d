"""One run from settings to result.json."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from equirelax.auditing import audit
from equirelax.errors import ConfigError, NonFiniteError
from equirelax.files import remove_left, write_text
from equirelax.relaxation import project
from equirelax_lab.data import Samples
from equirelax_lab.tasks.registry import build_task, named
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training import provenance
from equirelax_lab.training.assembly import Assembly, assemble
from equirelax_lab.training.atomic_io import AtomicCheckpointIO
from equirelax_lab.training.callbacks import EpochEnd, graceful_interrupt
from equirelax_lab.training.checkpoint import load_weights, read_run, write_selected
from equirelax_lab.training.cost import inference_cost
from equirelax_lab.training.dynamics import dynamics, loss_spikes, read_metrics
from equirelax_lab.training.evaluation import evaluate_all, headline_of
from equirelax_lab.training.folder import BEST, BEST_AVERAGE, CONFIG, LAST, METRICS, RESULT, check_folder
from equirelax_lab.training.loader import EpochLoader
from equirelax_lab.training.lock import LOCK, locked
from equirelax_lab.training.loggers import EVENTS, EpochTable, Events, room_for_events
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.module import RelaxedModule
from equirelax_lab.training.progress import EpochProgress


def train(
    config: RunConfig,
    folder: Path,
    root: Path | None = None,
    *,
    resume: bool = False,
    machine: Machine | None = None,
) -> dict[str, Any] | None:
    """Train, select, test and write `config.yaml`, `metrics.csv`, `last.ckpt`, `best.ckpt` and `result.json`
    into `folder`.

    Args:
        config: The run's settings.
        folder: The run's own folder.
        root: Data root; None takes EQUIRELAX_DATA or the user's cache folder.
        resume: Continue from `last.ckpt` if there is one; a finished run is returned as it is.
        machine: Devices and threads.

    Returns:
        The content of result.json ({} in ranks but the first); None when the run was interrupted.

    Raises:
        ConfigError: the folder holds another run, or settings differ from those of the run to resume.
        FolderInUseError: another process is writing to the folder. DataError: data is missing.
        CheckpointError: the checkpoint to resume from cannot be used.
        NonFiniteError: a loss, gradient or weight was not finite, or the loss exploded: says in which step, in which
            module it began, and what was kept.
    """
    machine = machine or Machine()
    # Further ranks are started by the first, in a folder that it has checked and holds.
    if global_rank():
        return _train(config, folder, root, resume, machine)
    if (folder / CONFIG).exists() and (folder / RESULT).exists():  # nobody writes to a finished run
        remove_left(folder / LOCK)  # of a process that was killed when all was done
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
    # Noted now: the source tree may change while the run goes on, what was imported does not.
    commit = provenance.commit()
    torch.set_num_threads(machine.threads)
    assembly, module, last = _build(config, folder, root, machine)
    if global_rank() == 0:
        config.write(folder / CONFIG)
    with graceful_interrupt(last):
        _fit(assembly, module, last, folder, machine)
    if last.completed < config.training.epochs:
        return None
    return _conclude(assembly, last, folder, commit) if global_rank() == 0 else {}


def _build(
    config: RunConfig, folder: Path, root: Path | None, machine: Machine
) -> tuple[Assembly, RelaxedModule, EpochEnd]:
    """The run's objects, data loaded."""
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
    assembly = assemble(config, root, steps_per_epoch=steps)
    return assembly, RelaxedModule(assembly, train_data), EpochEnd(assembly, train_data, val, folder)


def _fit(assembly: Assembly, module: RelaxedModule, last: EpochEnd, folder: Path, machine: Machine) -> None:
    """Lightning's Trainer over the epochs that are left."""
    config = assembly.config
    checkpoint = folder / LAST
    start = 0
    if checkpoint.exists():
        start = read_run(checkpoint).epochs
    loggers: list[Logger] = [EpochTable(folder, start)]
    if machine.tensorboard:
        loggers.append(Events(folder, name="", version=EVENTS, default_hp_metric=False))
    label = f"{config.benchmark} {config.model} {config.method} seed {config.seed}"
    bar = (
        [EpochProgress(last, config.training.epochs, label, assembly.task.metric.heading)]
        if machine.progress
        else []
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings(), room_for_events(folder):
        # Our loader is no DataLoader: what Lightning says about workers and logging intervals does not apply.
        warnings.filterwarnings("ignore", module="lightning.*")
        further = [last.divergence, last.sizes, *([last.averages] if last.averages is not None else [])]
        trainer = _trainer(config, folder, machine, [last, *further, *bar], loggers)
        try:
            trainer.fit(module, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
        except (NonFiniteError, RuntimeError) as error:
            if last.divergence.where is None:
                raise
            if global_rank() == 0:
                last.write_best()
            raise NonFiniteError(
                f"{error}{last.divergence.where} {last.kept()} Lower learning_rate, or set gradient_clip, and name "
                "another folder with --out."
            ) from error


def _trainer(
    config: RunConfig, folder: Path, machine: Machine, callbacks: list[Callback], loggers: list[Logger]
) -> lightning.Trainer:
    """A Trainer that leaves validation, checkpoints and progress to our callbacks.

    Raises:
        ConfigError: an accelerator, number of devices or strategy that is not to be had here.
    """
    try:
        return lightning.Trainer(
            accelerator=machine.accelerator,
            devices=machine.devices,
            strategy=machine.strategy,
            accumulate_grad_batches=machine.accumulate,
            precision=machine.precision,
            max_epochs=config.training.epochs,
            callbacks=callbacks,
            logger=loggers,
            plugins=[AtomicCheckpointIO()],
            gradient_clip_val=config.training.gradient_clip or None,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            log_every_n_steps=10**9,
        )
    except (MisconfigurationException, ValueError) as error:
        raise ConfigError(
            f"--accelerator {machine.accelerator} --devices {machine.devices} --strategy {machine.strategy} does not "
            f"work here: {' '.join(str(error).split())}"
        ) from error


def global_rank() -> int:
    """This process's number among those of a distributed run; 0 in every other."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def _conclude(assembly: Assembly, last: EpochEnd, folder: Path, commit: str | None) -> dict[str, Any]:
    """Take the selected weights, read the test set once, audit, and write the result."""
    config, task = assembly.config, assembly.task
    selected = last.selected
    if selected is None:
        raise NonFiniteError(
            "No validation had a finite value: there is nothing to select. Lower learning_rate."
        )
    write_selected(folder / BEST, config, selected)
    assembly.model.to("cpu")
    test = task.load("test")
    averaged = _averaged(assembly, last, test, folder)
    load_weights(assembly, selected.weights, str(folder / BEST))
    val_values, test_values = evaluate_all(assembly, last.val), evaluate_all(assembly, test)
    rows = read_metrics(folder / METRICS, config.training.epochs)
    result = {
        "benchmark": config.benchmark,
        "model": config.model,
        "method": config.method,
        "seed": config.seed,
        "recipe": named(config),
        "metric": task.metric.to_dict(),
        "val": headline_of(task, val_values),
        "test": headline_of(task, test_values),
        "metrics": {"val": val_values, "test": test_values},
        "averaged": averaged,
        "conditions": {
            name: evaluate_all(assembly, change(test)) for name, change in task.conditions().items()
        },
        "inference": inference_cost(assembly, test),
        "equivariance_error": equivariance_error(assembly),
        "parameters": {"strict": assembly.strict_parameters, "relaxed": assembly.relaxed_parameters},
        "epochs": config.training.epochs,
        "selected_epoch": selected.epoch + 1,
        "gammas": strengths(assembly),
        "dynamics": dynamics(rows),
        "loss_spikes": loss_spikes(rows),
        "scaled_down": task.scaled_down(),
        "seconds": round(last.seconds, 1),
        "commit": commit,
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
        "config": config.to_dict(),
    }
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def _averaged(assembly: Assembly, last: EpochEnd, test: Samples, folder: Path) -> dict[str, Any] | None:
    """What the averaged weights that validation selected reach; None where none are kept."""
    selected = last.selected_average
    if selected is None:
        return None
    write_selected(folder / BEST_AVERAGE, assembly.config, selected)
    load_weights(assembly, selected.weights, str(folder / BEST_AVERAGE))
    val_values, test_values = evaluate_all(assembly, last.val), evaluate_all(assembly, test)
    return {
        "decay": assembly.config.training.ema,
        "val": headline_of(assembly.task, val_values),
        "test": headline_of(assembly.task, test_values),
        "metrics": {"val": val_values, "test": test_values},
        "selected_epoch": selected.epoch + 1,
        "gammas": strengths(assembly),
    }


def strengths(assembly: Assembly) -> dict[str, float]:
    """gamma of every residual."""
    if assembly.relaxation is None:
        return {}
    return dict(zip(assembly.relaxation.residuals, assembly.relaxation.gammas().tolist(), strict=True))


def equivariance_error(assembly: Assembly) -> dict[str, Any] | None:
    """Relative equivariance error in float64 before (relaxed) and after projection; None where the task's group has
    no exact action. Leaves the model projected.
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
