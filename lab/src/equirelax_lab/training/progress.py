"""How far a run is: a rich bar over epochs on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from equirelax_lab.training.callbacks import EpochEnd

SECONDS_BETWEEN_LINES = 30.0


class EpochProgress(Callback):
    """Shows epoch, loss, validation and strengths.

    Args:
        source: Where the latest metrics are.
        epochs: Length of the run.
        label: Name of the run.
        metric: The metric and its unit.
    """

    def __init__(self, source: EpochEnd, epochs: int, label: str, metric: str) -> None:
        self.source, self.epochs, self.label, self.metric = source, epochs, label, metric
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self._last_line = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Begin the bar at the epoch where training begins."""
        self._last_line = time.perf_counter()
        if trainer.is_global_zero and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, TextColumn("{task.fields[metrics]}"), console=self.console)
            self.task = self.bar.add_task(
                self.label, total=self.epochs, completed=trainer.current_epoch, metrics=""
            )
            self.bar.start()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Move on by one epoch."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=trainer.current_epoch + 1, metrics=self.text())
        elif trainer.is_global_zero and time.perf_counter() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.perf_counter()
            print(f"{self.label}: epoch {trainer.current_epoch + 1}/{self.epochs}  {self.text()}", flush=True)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Give the terminal back, also after an error."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def text(self) -> str:
        """The latest metrics in a line."""
        latest = self.source.latest
        parts = [f"loss {latest['train/loss']:.4g}"] if "train/loss" in latest else []
        if "val/projected" in latest:
            projected, relaxed = latest["val/projected"], latest["val/relaxed"]
            parts.append(f"val {self.metric}: projected {projected:.3f} relaxed {relaxed:.3f}")
        gammas = [value for key, value in latest.items() if key.startswith("gamma/")]
        if gammas:
            parts.append(f"gamma {min(gammas):+.3f} .. {max(gammas):+.3f}")
        return "  ".join(parts)
