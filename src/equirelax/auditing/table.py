"""Plain text tables, and sections of a report that are folded where they do not fit."""

from __future__ import annotations

import dataclasses


def table(titles: list[str], rows: list[list[str]], right: frozenset[int] | None = None) -> str:
    """A plain text table: titles, a rule, rows; the first column to the left, numbers to the right."""
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
    """Three significant digits; an exact zero as such."""
    return "0" if value == 0 else f"{value:.2e}"


def entry_text(value: float | str) -> str:
    """An entry of an output; complex ones are text already."""
    return value if isinstance(value, str) else f"{value:.6g}"


@dataclasses.dataclass
class Section:
    """Lines that are always shown, rows that may be folded from the end, and lines after them.

    Attributes:
        what: the rows, in the words of the line that names how many were folded.
        shown: how many rows are.
        weight: how much longer than another section it stays where something must be folded.
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
        """The section as it is shown."""
        folded = len(self.rows) - self.shown
        more = [f"  ... {folded} more {self.what}"] if folded else []
        return [*self.head, *self.rows[: self.shown], *more, *self.tail]


def folded(sections: list[Section], most: int) -> str:
    """The sections with a blank line between them, in at most ``most`` lines where folding rows reaches that: the longest
    (over their weights) are folded first, down to one row each.
    """
    sections = [section for section in sections if section.lines]

    def length() -> int:
        return sum(len(section.lines) for section in sections) + len(sections) - 1

    while length() > most:
        # Folding the first row of all costs a line for its name, so two go at once.
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
