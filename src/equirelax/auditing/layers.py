"""What an audit found about the modules of a model."""

from __future__ import annotations

import dataclasses

from equirelax.auditing.table import number, table

BREAKS = "BREAKS"
INSIDE = "breaks inside"
PASSES = "passes on"
FINE = "ok"
UNKNOWN = "unknown"
SHOWN = 12


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """What one call of one module did.

    Attributes:
        path: the module's path, ``""`` for the model itself; type: its class; call: 0 for its first call.
        status: ``ok``; ``BREAKS`` (its inputs transform, its output does not, through its own code);
            ``breaks inside`` (a module in it does); ``passes on`` (what arrives is broken, it adds nothing);
            ``unknown``.
        arriving: relative error with which its worst input arrives; ``None`` where it cannot be told.
        relative: error that the module adds, relative to its output: that of its output when its inputs are exactly
            transformed; ``None`` where it cannot be told.
        absolute: the same, absolute.
        output: relative error of its output as it came in the run.
        inputs: the action that explains each tensor, or comes closest.
        outputs: likewise.
        note: the evidence, an assumption that was made, or why something is unknown.
    """

    path: str
    type: str
    call: int
    status: str
    arriving: float | None
    relative: float | None
    absolute: float | None
    output: float | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    note: str = ""

    @property
    def name(self) -> str:
        """Path for people, with the number of the call where it is not the first."""
        name = self.path or "(model)"
        return f"{name} (call {self.call + 1})" if self.call else name


@dataclasses.dataclass(frozen=True)
class Break:
    """The first place where equivariance is lost: the module whose own code does it, and how that shows."""

    path: str
    type: str
    words: str


@dataclasses.dataclass(frozen=True)
class Localisation:
    """Every call of every module, worst first, and the first break.

    Attributes:
        rows: those that break, those with such a one inside, those that pass a break on, unknown and fine
            ones; among each by the relative error that they add.
        first: the first break in the order of execution; ``None`` where the model is equivariant or none was
            found.
        note: why nothing could be localised, else empty.
    """

    rows: tuple[LayerRow, ...]
    first: Break | None
    note: str = ""

    def text(self, broken: bool) -> str:
        """The rows that matter as a table; of an equivariant model one line."""
        if self.note:
            return f"layers: {self.note}"
        told = [row for row in self.rows if row.status != UNKNOWN]
        if not broken:
            largest = max((row.relative for row in told if row.relative is not None), default=0.0)
            odd = [row.name for row in self.rows if row.status in (BREAKS, UNKNOWN)]
            tail = f"; not explained: {', '.join(odd[:6])}{' ...' if len(odd) > 6 else ''}" if odd else ""
            return f"layers: {len(self.rows)} calls, largest error added {number(largest)}{tail}"
        parts = [self._first(), self._table()]
        fine = sum(row.status == FINE for row in self.rows)
        calls = "call is" if fine == 1 else "calls are"
        hidden = len(self.rows) - fine - len(self._shown())
        more = f", {hidden} more not shown (see .layers)" if hidden > 0 else ""
        parts.append(f"  {fine} other {calls} fine{more}")
        accused = self.first.path if self.first else None
        notes = [f"  {row.name}: {row.note}" for row in self._shown() if row.note and row.path != accused]
        return "\n".join([part for part in parts if part] + notes)

    def _shown(self) -> list[LayerRow]:
        return [row for row in self.rows if row.status != FINE][:SHOWN]

    def _first(self) -> str:
        if self.first is None:
            return "first break: not found in any module (see the rows below)\n"
        where = self.first.path or "the model itself"
        return f"first break: {where} ({self.first.type})\n  {self.first.words}\n"

    def _table(self) -> str:
        titles = ["module, worst first", "type", "status", "arrives", "adds", "adds (abs)", "output as"]
        rows = [
            [
                row.name,
                row.type,
                row.status,
                _maybe(row.arriving),
                _maybe(row.relative),
                _maybe(row.absolute),
                "; ".join(row.outputs),
            ]
            for row in self._shown()
        ]
        return table(titles, rows, right=frozenset((3, 4, 5)))


def _maybe(value: float | None) -> str:
    return "?" if value is None else number(value)
