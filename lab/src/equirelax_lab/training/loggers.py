"""Loggers of the metrics of every epoch: metrics.csv, TensorBoard's events, and a bar or lines on the terminal.

metrics.csv has one row for every epoch. Rows are appended during the run, and later ones are dropped when it is resumed. Columns:

- epoch (from 0) and step: number of optimizer steps so far;
- train/loss and train/penalty: means over the epoch; seconds: since the start;
- update/strict and update/residual: root mean square of the change of a weight in an optimizer step;
- in epochs that validate: val/projected, val/relaxed, val/best; the same with averaged/ for the averaged weights, if `ema`
  keeps them; fit/projected and fit/relaxed: the task's loss on a fixed part of the training data; equivariance/relaxed and
  equivariance/projected: relative equivariance errors in float64, in the validations that `audit_every` chooses;
  weight/RESIDUAL: the norm of the residual's map, to be multiplied by its gamma;
- gamma/RESIDUAL and, if the method has them, multiplier/, slack/, ratio/, lie/, norm/RESIDUAL, after the epoch's last step;
- method/...: numbers of the method as a whole (REMUL's weights and losses, RPP's sums of squares).
"""

from __future__ import annotations

import contextlib
import csv
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from equirelax.files import atomic_write, storage_errors
from equirelax_lab.training.folder import METRICS, read_table

EVENTS = "tensorboard"
"""The folder of TensorBoard's events."""


class Logger(Protocol):
    """Receives a row of metrics for every epoch."""

    def log(self, epoch: int, row: Mapping[str, float]) -> None:
        """Log the row of epoch `epoch` (from 0)."""

    def close(self) -> None:
        """End the run's log."""


class Loggers:
    """Several loggers as one; there are none in ranks other than the first."""

    def __init__(self, *loggers: Logger) -> None:
        self.loggers = loggers

    def log(self, epoch: int, row: Mapping[str, float]) -> None:
        """Pass a row on to every logger."""
        for logger in self.loggers:
            logger.log(epoch, row)

    def close(self) -> None:
        """Close every logger."""
        for logger in self.loggers:
            logger.close()


class EpochTable:
    """Writes `metrics.csv`.

    Args:
        folder: The folder of the file.
        resume_from: Rows of this epoch and later are dropped, since the run will write them again. 0 starts a new file.
    """

    def __init__(self, folder: Path, resume_from: int = 0) -> None:
        self.path = folder / METRICS
        self.columns: list[str] = []
        if self.path.exists():
            self._cut(resume_from)

    def log(self, epoch: int, row: Mapping[str, float]) -> None:
        """Append the row of an epoch; a new column is added to the earlier rows with empty cells.

        Raises:
            StorageError: The disk is full, or the file may not be written to.
        """
        cells: dict[str, Any] = {"epoch": epoch, **row}
        if new := [key for key in cells if key not in self.columns]:
            rows = read_table(self.path) if self.path.exists() else []
            self.columns += new
            self._rewrite([*rows, cells])
            return
        with storage_errors(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(cells)

    def close(self) -> None:
        """Do nothing: every row is already written."""

    def _rewrite(self, rows: list[Any]) -> None:
        with atomic_write(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)

    def _cut(self, epoch: int) -> None:
        rows = [row for row in read_table(self.path) if row["epoch"].isdigit() and int(row["epoch"]) < epoch]
        self.columns = list(rows[0]) if rows else []
        if rows:
            self._rewrite(rows)
        else:
            self.path.unlink()


class Events:
    """Writes TensorBoard's events.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import (
            SummaryWriter,
        )  # imports tensorboard, for which help texts need not wait

        self.folder = folder / EVENTS
        with storage_errors(self.folder):
            self.writer = SummaryWriter(str(self.folder))

    def log(self, epoch: int, row: Mapping[str, float]) -> None:
        """Add a scalar for every column, at step `epoch`.

        Raises:
            StorageError: The disk is full, or the place may not be written to.
        """
        with storage_errors(self.folder):
            for name, value in row.items():
                self.writer.add_scalar(name, value, epoch)

    def close(self) -> None:
        """Write the remaining events.

        Raises:
            StorageError: See `log`.
        """
        with storage_errors(self.folder):
            self.writer.close()


@contextlib.contextmanager
def quiet_event_thread() -> Iterator[None]:
    """Context in which the thread that writes events prints no traceback if the disk is full.

    The next call of `Events` raises the error of the thread.
    """
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError):
            before(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
