"""What an audit found about the modules of a model."""

from __future__ import annotations

import dataclasses

from equirelax.auditing.norms import largest
from equirelax.auditing.table import Section, number, table

BREAKS = "BREAKS"
INSIDE = "breaks inside"
PASSES = "passes on"
FINE = "ok"
UNKNOWN = "unknown"


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
        strict: of a relaxed model that is not equivariant without its residuals either, the first break of that network;
            else ``None``.
    """

    rows: tuple[LayerRow, ...]
    first: Break | None
    note: str = ""
    strict: Break | None = None

    def sections(self, broken: bool) -> list[Section]:
        """What matters, for people; of an equivariant model one line."""
        if self.note:
            return [Section([f"layers: {self.note}"])]
        if not broken:
            told = [row for row in self.rows if row.status != UNKNOWN]
            added = largest(row.relative for row in told if row.relative is not None)
            odd = [row.name for row in self.rows if row.status in (BREAKS, UNKNOWN)]
            tail = f"; not explained: {', '.join(odd[:6])}{' ...' if len(odd) > 6 else ''}" if odd else ""
            return [Section([f"layers: {len(self.rows)} calls, largest error added {number(added)}{tail}"])]
        found = [Section(self._first())]
        shown = [row for row in self.rows if row.status != FINE]
        fine = len(self.rows) - len(shown)
        if shown:
            title, rule, *rows = self._table(shown)
            calls = f"  {fine} other {'call is' if fine == 1 else 'calls are'} fine"
            found.append(Section([title, rule], rows, "calls of modules (.layers)", [calls], weight=4))
        accused = {one.path for one in (self.first, self.strict) if one is not None}
        notes = [f"  {row.name}: {row.note}" for row in shown if row.note and row.path not in accused]
        if notes:
            found.append(Section([], notes, "notes on modules (.layers)"))
        return found

    def _first(self) -> list[str]:
        if self.first is None:
            lines = ["first break: not found in any module (see the rows below)"]
        else:
            where = self.first.path or "the model itself"
            lines = [f"first break: {where} ({self.first.type})", f"  {self.first.words}"]
        if self.strict is not None:
            where = self.strict.path or "the model itself"
            lines += [
                f"the strict network is not equivariant either: first break: {where} ({self.strict.type})",
                f"  {self.strict.words}",
            ]
        return lines

    @staticmethod
    def _table(shown: list[LayerRow]) -> list[str]:
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
            for row in shown
        ]
        return table(titles, rows, right=frozenset((3, 4, 5))).splitlines()


def _maybe(value: float | None) -> str:
    return "?" if value is None else number(value)
