"""The end of every epoch: validation, selection, a row of metrics, a checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from equirelax_lab.data import Samples
from equirelax_lab.training.assembly import Assembly
from equirelax_lab.training.averages import Averages
from equirelax_lab.training.checkpoint import Selection, write_selected, write_state
from equirelax_lab.training.equivariance import EquivarianceErrors
from equirelax_lab.training.evaluation import Evaluation
from equirelax_lab.training.folder import BEST, BEST_AVERAGE, LAST
from equirelax_lab.training.loggers import Loggers

if TYPE_CHECKING:
    from lightning.fabric import Fabric

FITTED = 500
"""Number of training samples whose loss is tracked, evenly spaced over the training set."""


class Trained(Protocol):
    """The state of a run's training: `Loop`, or a `Member` of a stack.

    Attributes:
        assembly: The run's objects.
        fabric: Lightning Fabric, launched.
        averages: Averaged weights; None without `ema`.
        completed: Number of completed epochs.
        steps: Optimizer steps taken, over all resumptions.
        fixed_memory: Whether the weights must keep their place in memory.
        sharing: Number of runs that share the process, and so its time.
    """

    assembly: Assembly
    fabric: Fabric
    averages: Averages | None
    completed: int
    steps: int
    fixed_memory: bool
    sharing: int

    def evaluation(self, val: Samples, train: Samples) -> Evaluation:
        """The evaluation of its networks on these samples, which are on their device."""

    def state_dict(self) -> dict[str, Any]:
        """The state that training needs to continue: plain data and tensors."""


class EpochEnd:
    """Validates, selects, logs and saves.

    Args:
        loop: The run's training, before its first epoch.
        train: Training samples; the loss of `FITTED` of them, evenly spaced, is tracked.
        val: Validation samples.
        folder: The run's folder.
        loggers: The receivers of the rows of metrics.

    Attributes:
        selection: The weights that are best on validation.
        average_selection: The averaged weights that are best on validation; it stays empty without `ema`.
        seconds: Time spent in training and validation, over all resumptions; in a stack, the run's share of the time.
        saved: Number of completed epochs in the resumable checkpoint.
    """

    def __init__(self, loop: Trained, train: Samples, val: Samples, folder: Path, loggers: Loggers) -> None:
        self.loop, self.folder, self.loggers = loop, folder, loggers
        self.assembly, self.fabric = loop.assembly, loop.fabric
        task, count = self.assembly.task, min(FITTED, len(train))
        # data sets are ordered: by class, by size, by run
        followed = task.as_trained(train.subset([k * len(train) // count for k in range(count)]))
        share = slice(self.fabric.global_rank, None, self.fabric.world_size)
        self.val = task.part(val, share).to(self.fabric.device)
        self.train = task.part(followed, share).to(self.fabric.device)
        self.evaluation = loop.evaluation(self.val, self.train)
        metric, rule = self.assembly.task.metric, self.assembly.config.training.select
        self.selection, self.average_selection = Selection(metric, rule), Selection(metric, rule)
        copied = self.fabric.world_size > 1 or loop.fixed_memory
        self.equivariance = EquivarianceErrors(self.assembly, copied)
        self.seconds, self.saved = 0.0, 0
        self._since = time.perf_counter()

    def __call__(self, columns: dict[str, float], stopping: bool) -> None:
        """Finish the epoch that `loop` has just completed.

        Args:
            columns: The measurements of the epoch's training, the first columns of its row.
            stopping: Whether no further epoch follows now, so that a checkpoint is due.
        """
        training, epoch = self.assembly.config.training, self.loop.completed
        last = epoch == training.epochs
        row = {"step": float(self.loop.steps), **columns}
        if last or epoch % training.validate_every == 0:
            row |= self._validation(epoch, last)
        method = self.assembly.method
        if method is not None:
            logs = method.logs()
            row |= {
                f"{name}/{path}": value for path, values in logs.items() for name, value in values.items()
            }
            row |= {f"method/{name}": value for name, value in method.scalars().items()}
        now = time.perf_counter()
        self.seconds += (now - self._since) / self.loop.sharing
        self._since = now
        row["seconds"] = self.seconds
        self.loggers.log(epoch - 1, row)
        if last or stopping or epoch % training.checkpoint_every == 0:
            self._save()

    def _validation(self, epoch: int, last: bool) -> dict[str, float]:
        """The columns of an epoch that validates."""
        row: dict[str, float] = {}
        networks = [("val", "trained", self.selection)]
        if self.loop.averages is not None:
            networks.append(("averaged", "averaged", self.average_selection))
        form = "relaxed" if self.assembly.deploys_relaxed else "projected"
        for prefix, name, selection in networks:
            row |= self._metrics(name, prefix)
            best = selection.consider(epoch - 1, row[f"{prefix}/{form}"], self.evaluation.networks[name])
            if best is not None:
                row[f"{prefix}/best"] = best
        row |= self._fit()
        every = self.assembly.config.training.audit_every * self.assembly.config.training.validate_every
        if self.fabric.is_global_zero and every and (last or epoch % every == 0):
            row |= self.equivariance.columns()
        if self.assembly.relaxation is not None:
            norms = self.assembly.relaxation.norms()
            row |= {f"weight/{key}": norm for key, norm in norms.items()}
        return row

    def _metrics(self, network: str, prefix: str) -> dict[str, float]:
        """The metrics of a network on the validation set, projected and relaxed; ranks share the samples."""
        task = self.assembly.task
        relaxed = projected = self.evaluation.totals(network)
        if self.assembly.relaxation is not None:
            projected = self.evaluation.totals(network, strict=True)
        row: dict[str, float] = {}
        sums = self._over_ranks(torch.stack([projected, relaxed]))
        for form, total in zip(("projected", "relaxed"), sums, strict=True):
            for name, value in task.metrics(total).items():
                row[f"{prefix}/{form}" if name == task.metric.name else f"{prefix}/{form}/{name}"] = value
        return row

    def _fit(self) -> dict[str, float]:
        """The task's loss on training data, without augmentation, as projected and as trained: means over samples.

        Training minimises the relaxed network's loss. Where the projected network's loss lags behind, the residuals have
        learnt what the strict weights should learn.
        """
        relaxed = projected = self.evaluation.loss_sum("trained")
        if self.assembly.relaxation is not None:
            projected = self.evaluation.loss_sum("trained", strict=True)
        count = relaxed.new_tensor(float(len(self.train)))
        first, second, total = self._over_ranks(torch.stack([projected, relaxed, count])).tolist()
        return {"fit/projected": first / total, "fit/relaxed": second / total}

    def _over_ranks(self, sums: Tensor) -> Tensor:
        return torch.as_tensor(self.fabric.all_reduce(sums, reduce_op="sum"))

    def _save(self) -> None:
        """Write the resumable checkpoint and the selected weights."""
        if self.fabric.is_global_zero:
            write_state(self.folder / LAST, self.assembly.config, self.loop.state_dict() | self.state_dict())
            self.write_best()
        self.saved = self.loop.completed

    def state_dict(self) -> dict[str, Any]:
        """The selected weights, and the time spent."""
        return {
            "selected": self.selection.state_dict(),
            "selected_average": self.average_selection.state_dict(),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict()` that a checkpoint held."""
        self.selection.load_state_dict(state["selected"])
        self.average_selection.load_state_dict(state["selected_average"])
        self.seconds, self.saved = state["seconds"], state["completed"]

    def write_best(self) -> None:
        """Write the weights that validation has selected so far."""
        for name, selection in ((BEST, self.selection), (BEST_AVERAGE, self.average_selection)):
            if selection.selected is not None:
                write_selected(self.folder / name, self.assembly.config, selection.selected)

    def kept(self) -> str:
        """A sentence that names the files of a run that cannot continue."""
        selected = self.selection.selected
        files = [] if selected is None else [f"{BEST} (the best weights, of epoch {selected.epoch + 1})"]
        files += [f"{LAST} (the state after epoch {self.saved})"] if self.saved else []
        return (
            f"{self.folder} keeps {' and '.join(files)}."
            if files
            else f"Nothing was saved in {self.folder} yet."
        )
