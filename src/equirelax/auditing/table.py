"""Plain text tables."""

from __future__ import annotations


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
