"""Numbers, tables and sections of a report as plain text."""

from __future__ import annotations

import dataclasses


def table(titles: list[str], rows: list[list[str]], right: frozenset[int] | None = None) -> str:
    """Format a plain text table: titles, a rule, rows. Columns in ``right`` (by default all but the first) are right-aligned."""
    right = frozenset(range(1, len(titles))) if right is None else right
    widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
    lines = []
    for row in [titles, ["-" * w for w in widths], *rows]:
        cells = [
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float) -> str:
    """Format a number with three significant digits, an exact zero as 0."""
    return "0" if value == 0 else f"{value:.2e}"


def number_or_unknown(value: float | None) -> str:
    """Format a number, ``None`` as a question mark."""
    return "?" if value is None else number(value)


def entry_text(value: float | str) -> str:
    """Format an entry of an output. Complex entries are text already."""
    return value if isinstance(value, str) else f"{value:.6g}"


@dataclasses.dataclass
class Section:
    """A section of a report: lines that are always shown, rows that may be folded from the end, and lines after them.

    Attributes:
        head: The lines before the rows.
        rows: The rows.
        what: The name of the rows in the line that counts the folded ones.
        tail: The lines after the rows.
        shown: Number of rows that are shown; all by default.
        weight: How long the section stays compared with others when rows must be folded.
    """

    head: list[str]
    rows: list[str] = dataclasses.field(default_factory=list)
    what: str = ""
    tail: list[str] = dataclasses.field(default_factory=list)
    shown: int = -1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.shown < 0:
            self.shown = len(self.rows)

    @property
    def lines(self) -> list[str]:
        """The lines that are shown."""
        folded = len(self.rows) - self.shown
        more = [f"  ... {folded} more {self.what}"] if folded else []
        return [*self.head, *self.rows[: self.shown], *more, *self.tail]


def folded(sections: list[Section], most: int) -> str:
    """Join the sections by blank lines and fold rows until at most ``most`` lines are left, if that is possible.

    The longest sections, relative to their weights, are folded first, down to one row each.
    """
    sections = [section for section in sections if section.lines]

    def length() -> int:
        return sum(len(section.lines) for section in sections) + len(sections) - 1

    while length() > most:
        # The first fold adds a line that names it, so it takes two rows.
        foldable = [
            section
            for section in sections
            if section.shown > (2 if section.shown == len(section.rows) else 1)
        ]
        if not foldable:
            break
        longest = max(foldable, key=lambda section: section.shown / section.weight)
        longest.shown -= 2 if longest.shown == len(longest.rows) else 1
    return "\n\n".join("\n".join(section.lines) for section in sections)
