"""The progress of a study: a live table on a terminal; elsewhere a line for each change, and a summary now and then."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from equirelax_lab.studies.trials import Status, Trial
from equirelax_lab.training.progress import duration

if TYPE_CHECKING:  # rich is imported only when something is shown; a help text does not need it
    from rich.console import Console
    from rich.table import Table

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_TABLES = 2.0
STYLE: dict[Status, str] = {
    "running": "bold", "failed": "red", "waiting": "dim", "pruned": "yellow", "finished": "green",
}  # fmt: skip
"""The states in the order of the table, and their styles."""
LEAST_ROWS = 4
COLUMNS = 80
"""Columns of the output if it is not a terminal."""


class Board:
    """A context that shows trials; `show` may be called any number of times.

    Attributes:
        paces: Trial -> seconds per epoch, for trials that have finished one.

    Args:
        title: The title of the table.
        total: How many trials there will be; None takes the number that is shown.
        console: Where the table goes; by default standard error.
    """

    def __init__(self, title: str, total: int | None = None, console: Console | None = None) -> None:
        self.title, self.total = title, total
        from rich.console import Console
        from rich.live import Live

        self.console = console or Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.paces: dict[Trial, float] = {}
        self._last = 0.0
        self._shown: dict[Trial, tuple[Status, int]] | None = None

    def __enter__(self) -> Board:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, trials: Sequence[Trial]) -> None:
        """Draw the table anew, or print what has changed since the last call."""
        current = {trial: (trial.status, trial.attempts) for trial in trials}
        before = current if self._shown is None else self._shown
        changed = [trial for trial in trials if before.get(trial) != current[trial]]
        self._shown, now = current, time.monotonic()
        if self.live is not None:
            if changed or now - self._last > SECONDS_BETWEEN_TABLES:
                self._last = now
                rows = max(self.console.height - 8, LEAST_ROWS)
                drawn = table(trials, self.title, rows, self.total, self.left(trials))
                self.live.update(drawn, refresh=True)
            return
        for trial in changed:
            again = trial.status == "waiting" and trial.reason
            if again or trial.status in ("finished", "pruned", "failed"):
                words = f" ({trial.reason})" if trial.reason else ""
                note = f": {trial.note}" if trial.note else ""
                status = "broken, to be tried again" if again else trial.status
                print(f"{trial.label}: {status}{words}{note}", flush=True)
        if now - self._last > SECONDS_BETWEEN_LINES:
            if self._last:
                print(line(trials, self.total, self.left(trials)), flush=True)
            self._last = now

    def left(self, trials: Sequence[Trial]) -> str:
        """The time that the remaining runs take, in words; empty before the first epoch is done.

        A run's remaining epochs are counted at its own pace, else at that of its kind, else at the mean of all. Waiting runs
        are spread over as many places as there are running ones.
        """
        for trial in trials:
            if trial.status == "running" or (trial.status == "finished" and trial not in self.paces):
                row = trial.progress()
                with contextlib.suppress(KeyError, ValueError):
                    self.paces[trial] = float(row["seconds"]) / (int(row["epoch"]) + 1)
        running = [trial for trial in trials if trial.status == "running"]
        if not self.paces or not running:
            return ""
        kinds = {(trial.grid, trial.kind): pace for trial, pace in self.paces.items()}
        mean = sum(self.paces.values()) / len(self.paces)

        def seconds(trial: Trial) -> float:
            pace = self.paces.get(trial) or kinds.get((trial.grid, trial.kind), mean)
            return pace * (trial.config.training.epochs - trial.epochs)

        ends = [seconds(trial) for trial in running]
        waiting = [seconds(trial) for trial in trials if trial.status == "waiting"]
        return f"about {duration(max(*ends, (sum(ends) + sum(waiting)) / len(ends)))} left"


def table(trials: Sequence[Trial], title: str, rows: int, total: int | None = None, left: str = "") -> Table:
    """The first `rows` trials, running and failed ones first; below them the number in each state, and the time left."""
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(
        title=escape(title), caption=", ".join(filter(None, (counts(trials, total), left))), show_edge=False
    )
    for heading in ("run", "state", "epoch", "best on validation", "left"):
        drawn.add_column(heading, justify="left" if heading in ("run", "state") else "right")
    order = list(STYLE)
    for trial in sorted(trials, key=lambda trial: order.index(trial.status))[:rows]:
        style = STYLE[trial.status]
        if trial.status == "running":
            where = f" on {trial.where}" if trial.where else ""
            attempt = f", attempt {trial.attempts}" if trial.attempts > 1 else ""
            drawn.add_row(trial.label, f"running{where}{attempt}", *_progress(trial), style=style)
        else:
            what = f"failed: {trial.reason}" if trial.status == "failed" else trial.status
            drawn.add_row(trial.label, escape(what), "", "", "", style=style)
    return drawn


def counts(trials: Sequence[Trial], total: int | None = None) -> str:
    """How many of `total` trials are in each state, on one line."""
    number = Counter(trial.status for trial in trials)
    parts = [f"{number['finished']} of {len(trials) if total is None else total} runs finished"]
    parts += [
        f"{number[status]} {status}"
        for status in ("pruned", "running", "waiting", "failed")
        if number[status]
    ]
    return ", ".join(parts)


def line(trials: Sequence[Trial], total: int | None = None, left: str = "") -> str:
    """How many trials are in each state, the time left, and the epochs of running ones, in lines of `COLUMNS`."""
    running = [trial for trial in trials if trial.status == "running"]
    epochs = [f"{t.label}: epoch {t.epochs}/{t.config.training.epochs}" for t in running]
    lines = [counts(trials, total)]
    for part in [*([left] if left else []), *epochs]:
        if len(lines[-1]) + len(part) + 3 > COLUMNS:
            lines[-1] += ";"
            lines.append(f"  {part}")
        else:
            lines[-1] += f"; {part}"
    return "\n".join(lines)


def _progress(trial: Trial) -> tuple[str, str, str]:
    """The epoch, the best validation value, and the time left at the present pace."""
    row, epochs = trial.progress(), trial.config.training.epochs
    try:
        done, spent = int(row["epoch"]) + 1, float(row["seconds"])
    except (KeyError, ValueError):
        return f"0/{epochs}", "", ""
    best = row.get("val/best") or ""
    return f"{done}/{epochs}", f"{float(best):.4g}" if best else "", duration((epochs - done) * spent / done)
