"""A table as text, and its output as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

_STRONG = "**"
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{
        "\N{MINUS SIGN}": "$-$",
        "±": r"$\pm$",
        "→": r"$\to$",
        "×": r"$\times$",
        "·": r"$\cdot$",
        "…": r"\ldots{}",
    },
}
_POWER = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?)e([+-]\d+)(?![\w.])")
_MINUS = re.compile(r"(?<![\w.-])-(?=\d)")
_NUMBER = re.compile(r"[-+]?\d[\d,.]*(e[-+]\d+)?\b")


@dataclass(frozen=True)
class Numbers:
    """A table as text.

    Attributes:
        title: What it shows.
        head: The headings of its columns.
        rows: Its cells. The first cell of a row names it, and text between double asterisks is bold.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def name(self) -> str:
        """The title as the name of a file, without its ending: its words up to the first comma or colon."""
        words = re.split(r"[,:] ", self.title.lower())[0]
        return re.sub(r"[^a-z0-9.=]+", "-", words).strip("-.") or "table"

    def files(self) -> dict[str, str]:
        """The table as CSV and as LaTeX: names of files and their content."""
        return {f"{self.name}.csv": self.csv(), f"{self.name}.tex": self.latex()}

    def markdown(self) -> str:
        """Head and rows as Markdown, with a newline after every line."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def csv(self) -> str:
        """Head and rows as CSV (RFC 4180, lines end as in Unix)."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows(
            tuple(cell.replace(_STRONG, "") for cell in line) for line in (self.head, *self.rows)
        )
        return text.getvalue()

    def latex(self) -> str:
        """A tabular environment for the package booktabs, with a line for every row."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.head)
        aligned = ["l", *("r" if _numeric(column) else "l" for column in columns[1:])]
        lines = [
            f"% {' '.join(self.title.split())} (\\usepackage{{booktabs}})",
            f"\\begin{{tabular}}{{{''.join(aligned)}}}",
            "\\toprule",
            _latex_row(self.head),
            "\\midrule",
            *map(_latex_row, self.rows),
            "\\bottomrule",
            "\\end{tabular}",
        ]
        return "\n".join(lines) + "\n"


def _numeric(column: tuple[str, ...]) -> bool:
    """Whether every cell of a column begins with a number, or is empty or unknown."""
    return all(cell in ("", "n/a") or _NUMBER.match(cell.replace(_STRONG, "")) for cell in column)


def _latex_row(cells: tuple[str, ...]) -> str:
    line = " & ".join(map(_latex_cell, cells))
    # A bracket or a star at the beginning of a line would be an argument of the preceding \\.
    return f"{'{}' if line[:1] in ('[', '*') else ''}{line} \\\\"


def _latex_cell(cell: str) -> str:
    parts = [_escaped(part) for part in cell.split(_STRONG)]
    return "".join(f"\\textbf{{{part}}}" if index % 2 else part for index, part in enumerate(parts))


def _escaped(text: str) -> str:
    """Text for LaTeX, with minus signs and powers of ten as mathematics."""
    found, end = [], 0
    for match in _POWER.finditer(text):
        number = f"${match[1]}\\times10^{{{int(match[2])}}}$"
        found += [_plain(text[end : match.start()]), number]
        end = match.end()
    return "".join([*found, _plain(text[end:])])


def _plain(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in _MINUS.sub("\N{MINUS SIGN}", text))
