"""metrics.csv: one row for every epoch, appended to as the run goes and cut back when it is resumed.

Columns: epoch (from 0), step, train/loss and train/penalty (means over the epoch), seconds (since the start),
and, as they are after the epoch's last step, val/projected, val/relaxed, val/best (in epochs that validate),
for every residual gamma/..., multiplier/..., slack/..., lie/..., norm/... where the method has them, and, in epochs
that validate, weight/...: the norm of its map, so that gamma times it tells what gamma alone does not;
averaged/projected, averaged/relaxed, averaged/best: the same of the averaged weights, where `ema` keeps them;
fit/projected and fit/relaxed: the task's loss on a fixed part of the training data, in epochs that validate;
update/strict and update/residual: root mean square of the change of a weight in an optimiser step;
equivariance/relaxed and equivariance/projected: relative equivariance errors in float64, in the validations that
`audit_every` chooses;
method/... for the method as a whole (REMUL's weights and losses, RPP's sums of squares).
"""

from __future__ import annotations

import contextlib
import csv
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from equirelax.files import atomic_write, storage_errors
from equirelax_lab.training.folder import METRICS, read_table

EVENTS = "tensorboard"
"""The folder of TensorBoard's events."""


class EpochTable(Logger):
    """A Lightning logger that writes `metrics.csv`; the `step` of a row is its epoch.

    Args:
        folder: Where the file goes.
        resume_from: Rows of this epoch and later are dropped: the run will write them again. 0 starts a new
            file.
    """

    def __init__(self, folder: Path, resume_from: int = 0) -> None:
        super().__init__()
        self.path = folder / METRICS
        self.columns: list[str] = []
        self._keep_before(resume_from)

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """There is one file, without versions."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Settings are in config.yaml; nothing is written here."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append the row of epoch `step`."""
        row = {"epoch": step, **metrics}
        if new := [key for key in row if key not in self.columns]:
            rows = read_table(self.path) if self.path.exists() else []
            self.columns += new
            self._rewrite([*rows, row])
            return
        with storage_errors(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite(self, rows: list[Any]) -> None:
        with atomic_write(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)

    @rank_zero_only
    def _keep_before(self, epoch: int) -> None:
        if not self.path.exists():
            return
        rows = [row for row in read_table(self.path) if row["epoch"].isdigit() and int(row["epoch"]) < epoch]
        self.columns = list(rows[0]) if rows else []
        if rows:
            self._rewrite(rows)
        else:
            self.path.unlink()


class Events(TensorBoardLogger):
    """TensorBoard's events alone: settings are in config.yaml."""

    @rank_zero_only
    def save(self) -> None:
        """Lightning would write hparams.yaml here, and not at once."""


@contextlib.contextmanager
def room_for_events(folder: Path) -> Iterator[None]:
    """Within it a disk that has no room for events is a `StorageError` that names their folder in `folder`.

    Events are written by a thread. What it meets it tells whoever logs next; its own traceback is left out.
    """
    before = threading.excepthook

    def tell(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError):
            before(failure)

    threading.excepthook = tell
    try:
        with storage_errors(folder / EVENTS):
            yield
    finally:
        threading.excepthook = before
