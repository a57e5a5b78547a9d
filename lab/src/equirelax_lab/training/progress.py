"""The progress of a run, and how long it will take: a bar and a line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if (
    TYPE_CHECKING
):  # rich is imported only when something is drawn; help texts and the times of a study do not need it
    from rich.console import Console, RenderableType
    from rich.live import Live

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_DRAWINGS = 0.2
SECONDS_TO_MEASURE = 2.0
"""Seconds for which steps are timed, after the first step, before announcing how long the run takes."""
LONG = 60.0
"""The duration of a run is announced if it is more seconds than this."""


class EpochProgress:
    """Shows the epoch, the time left, the loss, validation and the strengths: a logger that writes to the terminal.

    The time left is that of the remaining epochs, at this process's pace since its first step. Before the first epoch is over it
    is the time of the training steps only.

    Args:
        start: Number of completed epochs.
        epochs: Length of the run.
        steps: Training steps of an epoch.
        label: Name of the run.
        metric: The metric and its unit.
        console: Where a bar is drawn; by default standard error if that is a terminal, else there are lines on standard output.
        clock: Seconds since any point in time.
    """

    def __init__(
        self,
        start: int,
        epochs: int,
        steps: int,
        label: str,
        metric: str,
        console: Console | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self.epochs, self.steps, self.clock = epochs, steps, clock
        self.completed, self.part = start, 0.0
        self.latest: dict[str, float] = {}
        self._shown = clock()
        self._anchor: tuple[float, float] | None = None
        self._announced = False
        console = console or Console(stderr=True)
        self.live: Live | None = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._print(
            f"{label}: {_number(epochs - start, 'epoch')} of {_number(steps, 'step')}; val is {metric}"
        )
        if self.live is not None:
            self.live.start()

    def step(self, done: int) -> None:
        """Record that `done` training steps of the present epoch are taken."""
        self.part = done / self.steps
        now = self.clock()
        if self._anchor is None:  # the first step is slower than the others
            self._anchor = now, self._position
            return
        if not self._announced and now - self._anchor[0] > SECONDS_TO_MEASURE:
            self._announced = True
            self._tell_length(now)
        pause = SECONDS_BETWEEN_LINES if self.live is None else SECONDS_BETWEEN_DRAWINGS
        if now - self._shown > pause:
            self._show(now)

    def log(self, epoch: int, row: Mapping[str, float]) -> None:
        """Move on by one epoch."""
        self.latest.update(row)
        self.completed, self.part = epoch + 1, 0.0
        now = self.clock()
        if self.live is not None or now - self._shown > SECONDS_BETWEEN_LINES:
            self._show(now)

    def close(self) -> None:
        """Release the terminal."""
        if self.live is not None:
            self.live.stop()

    def seconds_left(self, now: float) -> float | None:
        """Seconds until the last epoch is done; None before they can be computed."""
        if self._anchor is None or self._position == self._anchor[1]:
            return None
        begun, position = self._anchor
        return (self.epochs - self._position) * (now - begun) / (self._position - position)

    def place(self, now: float) -> str:
        """The epoch, and the time left."""
        within = (
            f" (step {round(self.part * self.steps)} of {self.steps})"
            if self.part and not self.completed
            else ""
        )
        left = self.seconds_left(now)
        return f"epoch {self.completed}/{self.epochs}{within}" + (
            f", {duration(left)} left" if left is not None else ""
        )

    def text(self) -> str:
        """The latest metrics, on one line."""
        latest = self.latest
        parts = [f"loss {latest['train/loss']:.4g}"] if "train/loss" in latest else []
        if "val/projected" in latest:
            projected, relaxed = latest["val/projected"], latest["val/relaxed"]
            both = f" projected, {relaxed:.4g} relaxed" if relaxed != projected else ""
            parts.append(f"val {projected:.4g}{both}")
        gammas = [value for key, value in latest.items() if key.startswith("gamma/")]
        if gammas and self.live is not None:
            parts.append(f"gamma {min(gammas):+.3f} to {max(gammas):+.3f}")
        return ", ".join(parts)

    @property
    def _position(self) -> float:
        return self.completed + self.part

    def _tell_length(self, now: float) -> None:
        """Announce how long the run takes, if that is long."""
        left = self.seconds_left(now)
        if left is not None and left > LONG:
            pace = left / (self.epochs - self._position)
            each = f"{pace:.2g} s" if pace < 10 else duration(pace)
            self._print(
                f"About {duration(left)}: {self.epochs - self.completed} epochs of {each}, and validations."
            )

    def _show(self, now: float) -> None:
        self._shown = now
        if self.live is not None:
            self.live.update(self._drawn(now), refresh=True)
        else:
            self._print(": ".join(filter(None, (self.place(now), self.text()))))

    def _drawn(self, now: float) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(ProgressBar(total=self.epochs, completed=self._position), Text(self.place(now)))
        return Group(bar, Text(self.text(), no_wrap=True, overflow="ellipsis"))

    def _print(self, line: str) -> None:
        if self.live is None:
            print(line, flush=True)
        else:
            self.live.console.print(line, highlight=False, markup=False)


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """A rounded duration in at most two units: 40 s, 5 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours + round(minutes / 60), 24)
    return f"{days} d {hours} h"
