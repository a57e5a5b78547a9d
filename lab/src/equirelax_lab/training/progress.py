"""How far a run is: a rich bar over epochs on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


class EpochProgress:
    """Shows the epoch, the loss, validation and the strengths: a logger that writes to the terminal.

    Args:
        start: Epochs that are done.
        epochs: Length of the run.
        label: Name of the run.
        metric: The metric and its unit.
    """

    def __init__(self, start: int, epochs: int, label: str, metric: str) -> None:
        self.epochs, self.label, self.metric = epochs, label, metric
        self.latest: dict[str, float] = {}
        self._last_line = time.perf_counter()
        self.bar: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, TextColumn("{task.fields[metrics]}"), console=console)
            self.task = self.bar.add_task(label, total=epochs, completed=start, metrics="")
            self.bar.start()

    def log(self, epoch: int, row: Mapping[str, float]) -> None:
        """Move on by one epoch."""
        self.latest.update(row)
        if self.bar is not None:
            self.bar.update(self.task, completed=epoch + 1, metrics=self.text())
        elif time.perf_counter() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.perf_counter()
            print(f"{self.label}: epoch {epoch + 1}/{self.epochs}  {self.text()}", flush=True)

    def close(self) -> None:
        """Give the terminal back."""
        if self.bar is not None:
            self.bar.stop()

    def text(self) -> str:
        """The latest metrics in a line."""
        latest = self.latest
        parts = [f"loss {latest['train/loss']:.4g}"] if "train/loss" in latest else []
        if "val/projected" in latest:
            projected, relaxed = latest["val/projected"], latest["val/relaxed"]
            parts.append(f"val {self.metric}: projected {projected:.3f} relaxed {relaxed:.3f}")
        gammas = [value for key, value in latest.items() if key.startswith("gamma/")]
        if gammas:
            parts.append(f"gamma {min(gammas):+.3f} .. {max(gammas):+.3f}")
        return "  ".join(parts)
