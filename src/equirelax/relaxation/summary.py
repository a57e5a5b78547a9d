"""What a relaxation touched, module by module, and why."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from equirelax.relaxation.memory import Memory

RELAXED, SKIPPED, UNKNOWN = "relaxed", "skipped", "unknown"


@dataclass(frozen=True)
class Row:
    """One module of the model.

    Args:
        path: of the module ("" is the model itself); with ":slot" where a module has several residuals.
        type: name of the module's class.
        status: "relaxed", "skipped" or "unknown" (it has parameters of its own,
            and no layer family knows it).
        reason: why.
        shape: (out_dim, in_dim) of the residual, where there is one.
        parameters: that the residual adds, without its gamma.
        relaxes: the group that the residual breaks.
    """

    path: str
    type: str
    status: str
    reason: str = ""
    shape: tuple[int, int] | None = None
    parameters: int = 0
    relaxes: str = ""


@dataclass(frozen=True)
class Summary:
    """The rows of a relaxation, and the memory that training it takes.

    `str()` is a table of at most 40 lines: where there are more rows, those of modules that differ in a number alone are
    one line, and what is still too much is named below the table. `full()` has a line for every row.
    """

    rows: tuple[Row, ...]
    memory: Memory

    def with_status(self, status: str) -> tuple[Row, ...]:
        """The rows that are "relaxed", "skipped" or "unknown"."""
        return tuple(row for row in self.rows if row.status == status)

    @property
    def parameters(self) -> int:
        """Parameters that the residuals add, without the strengths."""
        return sum(row.parameters for row in self.rows)

    def full(self) -> str:
        """The table with every row."""
        return "\n".join([*_table([_cells([row]) for row in self.rows]), *self._totals()])

    def __str__(self) -> str:
        groups = [[row] for row in self.rows]
        if len(groups) > LINES - FRAME:
            groups = _grouped(self.rows)
        shown = groups
        if len(groups) > LINES - FRAME:
            # what matters most stays: relaxed ones, then those that nobody knows, then the skipped ones
            rank = {RELAXED: 0, UNKNOWN: 1, SKIPPED: 2}
            first = sorted(range(len(groups)), key=lambda i: (rank[groups[i][0].status], i))[
                : LINES - FRAME - 3
            ]
            shown = [groups[i] for i in sorted(first)]
        hidden = [group for group in groups if group not in shown]
        lines = _table([_cells(group) for group in shown])
        for status in (RELAXED, UNKNOWN, SKIPPED):
            if names := [_name(group) for group in hidden if group[0].status == status]:
                lines.append(_shortened(f"not shown, {status}: ", names))
        return "\n".join([*lines, *self._totals()])

    def _totals(self) -> list[str]:
        counts = [f"{len(self.with_status(s))} {s}" for s in (RELAXED, SKIPPED, UNKNOWN)]
        return [f"{', '.join(counts)}; the residuals add {self.parameters:,} parameters", str(self.memory)]

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in HEADER)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(group))}</tr>"
            for group in _grouped(self.rows)
        )
        totals = "".join(f"<p>{html.escape(line)}</p>" for line in self._totals())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{totals}"


HEADER = ("module", "type", "status", "residual", "parameters", "relaxes", "why")
LINES = 40
"""A terminal's height, about."""
FRAME = 4
"""Lines of a table that are no rows: header, rule and totals."""
WIDTH = 160
"""Of a line that names what is not shown."""


def _table(cells: list[tuple[str, ...]]) -> list[str]:
    lines = [HEADER, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    text = [
        "  ".join(
            cell.rjust(w) if i == 4 else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return [text[0], "  ".join("-" * w for w in widths), *text[1:]]


def _cells(group: list[Row]) -> tuple[str, ...]:
    row = group[0]
    shape = f"{row.shape[1]} -> {row.shape[0]}" if row.shape else ""
    count = f"{sum(one.parameters for one in group):,}" if row.shape else ""
    return (_name(group), row.type, row.status, shape, count, row.relaxes, row.reason)


def _grouped(rows: tuple[Row, ...]) -> list[list[Row]]:
    """Rows whose paths differ in a number alone, and that are alike in everything that is shown, together."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        like = (
            _NUMBER.sub("#", row.path),
            row.type,
            row.status,
            row.shape,
            row.relaxes,
            _NUMBER.sub("#", row.reason),
        )
        groups.setdefault(like, []).append(row)
    return list(groups.values())


_NUMBER = re.compile(r"\d+")


def _name(group: list[Row]) -> str:
    """ "layers.{0..5}.map (6)" for a group; where several numbers differ, each with its range."""
    if len(group) == 1:
        return group[0].path or "(model)"
    numbers = [[int(n) for n in _NUMBER.findall(row.path)] for row in group]
    ranges = iter([sorted(set(column)) for column in zip(*numbers, strict=True)])

    def spell(_: re.Match[str]) -> str:
        values = next(ranges)
        if len(values) == 1:
            return str(values[0])
        whole = values == list(range(values[0], values[-1] + 1))
        return f"{{{values[0]}..{values[-1]}}}" if whole else f"{{{','.join(map(str, values))}}}"

    return f"{_NUMBER.sub(spell, group[0].path)} ({len(group)})"


def _shortened(start: str, names: list[str]) -> str:
    """Names up to a line's width, and how many more there are."""
    shown: list[str] = []
    for name in names:
        if len(start) + len(", ".join([*shown, name])) > WIDTH:
            break
        shown.append(name)
    more = len(names) - len(shown)
    return start + ", ".join(shown) + (f" and {more} more; see full()" if more else "")
