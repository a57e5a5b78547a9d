"""What happens at the end of every epoch: validation, selection, a row of metrics, a checkpoint, a stop if
asked for.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from equirelax.errors import CheckpointError
from equirelax.relaxation import relaxation_of
from equirelax_lab.data import Samples
from equirelax_lab.training.assembly import Assembly
from equirelax_lab.training.averages import Averages
from equirelax_lab.training.checkpoint import FORMAT, KEY, Selected, copy_weights, write_selected
from equirelax_lab.training.divergence import Divergence
from equirelax_lab.training.equivariance import Gauge
from equirelax_lab.training.evaluation import totals
from equirelax_lab.training.fit import StepSizes, TrainingFit
from equirelax_lab.training.folder import BEST, BEST_AVERAGE, LAST
from equirelax_lab.training.module import RelaxedModule

AVERAGED = "averaged"
"""Prefix of the columns of the averaged weights' validation."""
STOPS = (signal.SIGINT, signal.SIGTERM)
"""What asks a run to stop: Ctrl-C, and what schedulers and `kill` send."""


class EpochEnd(Callback):
    """Validates, selects, logs and saves.

    Args:
        assembly: The run's objects.
        train: Training samples, of which a fixed part is followed.
        val: Validation samples.
        folder: The run's folder.

    Attributes:
        selected: The best weights so far; None before the first validation with a finite value.
        selected_average: The best averaged weights so far; None where none are kept.
        averages: Averaged weights; None where `ema` is 0. A callback of its own.
        sizes: Measures optimiser steps; a callback of its own.
        completed: Epochs that are done. saved: Those that the resumable checkpoint holds.
        seconds: Time spent in training and validation, over all resumptions.
        divergence: Looks at losses, gradients and weights; a callback of its own.
        stop_requested: Set it to end the run, resumable, after the present epoch.
        on_stop: Handler of the signals that ask for it; None: whoever runs it has handlers of their own.
    """

    def __init__(self, assembly: Assembly, train: Samples, val: Samples, folder: Path) -> None:
        self.assembly, self.val, self.folder = assembly, val, folder
        self.part = val
        self.fit = TrainingFit(assembly, train)
        self.sizes = StepSizes(assembly)
        decay = assembly.config.training.ema
        self.averages = Averages(assembly, decay) if decay else None
        self.selected_average: Selected | None = None
        self.gauge = Gauge(assembly)
        self.divergence = Divergence(assembly)
        self.selected: Selected | None = None
        self.seconds = 0.0
        self.stop_requested = False
        self.completed = self.saved = 0
        self.latest: dict[str, float] = {}
        self.on_stop: Callable[[int, FrameType | None], None] | None = None
        self._since = 0.0
        self._restored: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Put this rank's share of the validation data where the model is, and start the clock."""
        part = slice(trainer.global_rank, None, trainer.world_size)
        self.part = self.val.subset(part).to(module.device)
        self.fit.to(trainer, module.device)
        self._since = time.perf_counter()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Give torch's random state back, as the last thing before training goes on."""
        if self.on_stop is not None:
            # Lightning has put a handler of its own around ours, which would end the run before the epoch's end.
            signal.signal(signal.SIGTERM, self.on_stop)
        if "rng" in self._restored:
            torch.set_rng_state(self._restored["rng"])
            if module.device.type == "cuda" and "cuda_rng" in self._restored:
                torch.cuda.set_rng_state(self._restored["cuda_rng"], module.device)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """One row of metrics; a checkpoint when one is due."""
        training = self.assembly.config.training
        epoch, last = trainer.current_epoch, trainer.current_epoch + 1 == training.epochs
        metrics: dict[str, float] = {"step": float(trainer.global_step)}
        if isinstance(module, RelaxedModule):
            means = module.epoch_means()
            self.divergence.check_epoch(trainer, means)
            metrics.update(means)
        metrics.update(self.sizes.epoch_sizes())
        if last or (epoch + 1) % training.validate_every == 0:
            metrics.update(self.validate(trainer, self.assembly.model, "val"))
            self.selected = self._select(epoch, metrics, "val", self.selected, self.assembly.model)
            if self.averages is not None:
                average = self.averages.model
                metrics.update(self.validate(trainer, average, AVERAGED))
                self.selected_average = self._select(epoch, metrics, AVERAGED, self.selected_average, average)
            metrics.update(self.fit.losses(trainer))
            if trainer.is_global_zero and self._audits(epoch, last):
                metrics.update(self.gauge.errors())
            if self.assembly.relaxation is not None:
                norms = self.assembly.relaxation.norms()
                metrics.update({f"weight/{key}": norm for key, norm in norms.items()})
        if self.assembly.method is not None:
            for path, values in self.assembly.method.logs().items():
                metrics.update({f"{name}/{path}": value for name, value in values.items()})
            scalars = self.assembly.method.scalars()
            metrics.update({f"method/{name}": value for name, value in scalars.items()})
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        metrics["seconds"] = self.seconds
        self.latest.update(metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=epoch)
        self.completed = epoch + 1
        stop = trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False)
        trainer.should_stop = trainer.should_stop or stop
        if last or stop or (epoch + 1) % training.checkpoint_every == 0:
            self._save(trainer)

    def validate(self, trainer: Trainer, model: nn.Module, prefix: str) -> dict[str, float]:
        """The metrics of a network on the validation set, projected and relaxed; ranks share the samples."""
        task = self.assembly.task
        relaxed = totals(task, model, self.part)
        projected = relaxed
        if self.assembly.relaxation is not None:
            with relaxation_of(model).strict():
                projected = totals(task, model, self.part)
        sums = torch.as_tensor(trainer.strategy.reduce(torch.stack([projected, relaxed]), reduce_op="sum"))
        row: dict[str, float] = {}
        for kind, total in zip(("projected", "relaxed"), sums, strict=True):
            for name, value in task.metrics(total).items():
                row[f"{prefix}/{kind}" if name == task.metric.name else f"{prefix}/{kind}/{name}"] = value
        return row

    def _audits(self, epoch: int, last: bool) -> bool:
        """Whether the equivariance error is measured after this epoch, which validates."""
        training = self.assembly.config.training
        every = training.audit_every * training.validate_every
        return bool(every) and (last or (epoch + 1) % every == 0)

    def _select(
        self, epoch: int, metrics: dict[str, float], prefix: str, best: Selected | None, model: nn.Module
    ) -> Selected | None:
        """The better of the weights selected before and the model's; the latter where the last weights are wanted."""
        value = metrics[f"{prefix}/{'relaxed' if self.assembly.deploys_relaxed else 'projected'}"]
        metric = self.assembly.task.metric
        latest = self.assembly.config.training.select == "last" and math.isfinite(value)
        if latest or metric.better(value, metric.worst if best is None else best.value):
            best = Selected(epoch, value, copy_weights(model))
        if best is not None:
            metrics[f"{prefix}/best"] = best.value
        return best

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.folder / LAST)
        self.saved = self.completed
        if trainer.is_global_zero:
            self.write_best()

    def write_best(self) -> None:
        """Write the weights that validation selected so far, if it did."""
        if self.selected is not None:
            write_selected(self.folder / BEST, self.assembly.config, self.selected)
        if self.selected_average is not None:
            write_selected(self.folder / BEST_AVERAGE, self.assembly.config, self.selected_average)

    def kept(self) -> str:
        """What is left of a run that cannot go on, in words, once `write_best` was called."""
        found = (
            []
            if self.selected is None
            else [f"{BEST} (the best weights, of epoch {self.selected.epoch + 1})"]
        )
        found += [f"{LAST} (the state after epoch {self.saved})"] if self.saved else []
        return (
            f"{self.folder} keeps {' and '.join(found)}."
            if found
            else f"Nothing was saved in {self.folder} yet."
        )

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """What Lightning does not know: settings, the method, the selection, random states, the clock."""
        method = self.assembly.method
        state: dict[str, Any] = {
            "format": FORMAT,
            "config": self.assembly.config.to_dict(),
            "method": None if method is None else method.state_dict(),
            "selected": None if self.selected is None else self.selected.to_dict(),
            "selected_average": None if self.selected_average is None else self.selected_average.to_dict(),
            "completed": self.completed,
            "seconds": self.seconds,
            "rng": torch.get_rng_state(),
        }
        if module.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(module.device)
        checkpoint[KEY] = state

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take all of it back."""
        state = checkpoint.get(KEY)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.folder / LAST} was not written by this version's `equirelax train`: start the run anew."
            )
        if self.assembly.method is not None:
            self.assembly.method.load_state_dict(state["method"])
        self.selected = None if state["selected"] is None else Selected(**state["selected"])
        average = state["selected_average"]
        self.selected_average = None if average is None else Selected(**average)
        self.seconds, self._restored = state["seconds"], state
        self.completed = self.saved = state["completed"]


class _AtOnce(BaseException):
    """Stop now. No KeyboardInterrupt: Lightning would answer that by ending the process with exit code 1."""


@contextlib.contextmanager
def graceful_interrupt(callback: EpochEnd) -> Iterator[None]:
    """Within it the first Ctrl-C (or SIGTERM) asks the run to stop after the present epoch; the second stops
    at once, with a KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if callback.stop_requested:
            raise _AtOnce
        callback.stop_requested = True
        print(
            "\nStopping after this epoch (again: at once, going back to the last checkpoint).",
            file=sys.stderr,
            flush=True,
        )

    before = {number: signal.signal(number, ask) for number in STOPS}
    callback.on_stop = ask
    try:
        yield
    except (_AtOnce, SIGTERMException):  # Lightning's: of a signal that came before ours was put back
        raise KeyboardInterrupt from None
    finally:
        callback.on_stop = None
        for number, handler in before.items():
            signal.signal(number, handler)
