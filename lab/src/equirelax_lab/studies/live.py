"""How a study goes on: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from equirelax_lab.studies.state import State, Status

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_TABLES = 2.0
ORDER: tuple[Status, ...] = ("running", "failed", "waiting", "finished")
STYLE = {"running": "bold", "failed": "red", "waiting": "dim", "finished": "green"}
LEAST_ROWS = 4


class Board:
    """A context whose `show` may be called as often as one likes.

    Args:
        title: Above the table. console: Where to; by default standard error.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._last = 0.0
        self._told: dict[State, tuple[Status, int]] = {}

    def __enter__(self) -> Board:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, states: Sequence[State]) -> None:
        """Draw the table anew, or print what has changed."""
        changed = self._changes(states)
        now = time.monotonic()
        if self.live is not None:
            if changed or now - self._last > SECONDS_BETWEEN_TABLES:
                self._last = now
                rows = max(self.console.height - 8, LEAST_ROWS)
                self.live.update(table(states, self.title, rows), refresh=True)
            return
        for state in changed:
            if state.status in ("finished", "failed") or state.reason:
                again = ", to be tried again" if state.status == "waiting" else ""
                words = f" ({state.reason})" if state.reason else ""
                print(f"{state.trial.label}: {'broken' if again else state.status}{again}{words}", flush=True)
        if now - self._last > SECONDS_BETWEEN_LINES:
            if self._last:
                print(line(states), flush=True)
            self._last = now

    def _changes(self, states: Sequence[State]) -> list[State]:
        """Those whose status is new since the last call; on the first call none."""
        current = {state: (state.status, state.attempts) for state in states}
        found = [state for state in states if self._told and self._told[state] != current[state]]
        self._told = current
        return found


def table(states: Sequence[State], title: str, rows: int) -> Table:
    """Running, failed and the next waiting runs, at most `rows`; how many there are of each below."""
    drawn = Table(title=escape(title), caption=counts(states), show_edge=False)
    for heading in ("run", "state", "epoch", "best on validation", "left"):
        drawn.add_column(heading, justify="left" if heading in ("run", "state") else "right")
    ordered = sorted(states, key=lambda state: ORDER.index(state.status))
    for state in ordered[:rows]:
        style = STYLE[state.status]
        if state.status == "running":
            drawn.add_row(state.trial.label, _attempt(state), *_progress(state), style=style)
        else:
            what = f"failed: {state.reason}" if state.status == "failed" else state.status
            drawn.add_row(state.trial.label, escape(what), "", "", "", style=style)
    return drawn


def counts(states: Sequence[State]) -> str:
    """How many runs are in which state, in a line."""
    number = Counter(state.status for state in states)
    parts = [f"{number['finished']} of {len(states)} runs finished"]
    parts += [f"{number[status]} {status}" for status in ("running", "waiting", "failed") if number[status]]
    return ", ".join(parts)


def line(states: Sequence[State]) -> str:
    """Counts, and the epochs of what is running."""
    running = [state for state in states if state.status == "running"]
    return "; ".join(
        [
            counts(states),
            *(f"{s.trial.label}: epoch {s.epochs}/{s.trial.config.training.epochs}" for s in running),
        ]
    )


def duration(seconds: float) -> str:
    """About how long, with two figures' worth of units: 40 s, 5 min, 3 h 20 min, 2 d 4 h."""
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


def _attempt(state: State) -> str:
    place = f"running on {state.where}" if state.where else "running"
    return place if state.attempts < 2 else f"{place}, attempt {state.attempts}"


def _progress(state: State) -> tuple[str, str, str]:
    """Epoch, the best validation value, and the time that is left at the present pace."""
    row, epochs = state.progress(), state.trial.config.training.epochs
    try:
        done, spent = int(row["epoch"]) + 1, float(row["seconds"])
    except (KeyError, ValueError):
        return f"0/{epochs}", "", ""
    best = row.get("val/best") or ""
    return f"{done}/{epochs}", f"{float(best):.4g}" if best else "", duration((epochs - done) * spent / done)
