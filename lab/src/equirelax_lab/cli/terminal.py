"""Print results on a terminal: Markdown tables that are too wide are transposed, and sentences are wrapped between words."""

from __future__ import annotations

import itertools
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence

from equirelax_lab.cli.help import columns

_RULE = re.compile(r":?-+:?")
GAP = "  "


def show(text: str) -> None:
    """Print results, fitted to a terminal; a file or a pipe gets the Markdown as it is."""
    print(fitted(text, columns()) if sys.stdout.isatty() else text, flush=True)


def fitted(text: str, width: int) -> str:
    """Fit Markdown into lines of at most `width` characters, where words and cells allow it."""
    lines: list[str] = []
    for is_table, group in itertools.groupby(text.split("\n"), lambda line: line.lstrip().startswith("|")):
        if is_table:
            lines += _table([_cells(line) for line in group], width)
        else:
            for line in group:
                lines += _sentence(line, width)
    return "\n".join(lines)


def _sentence(line: str, width: int) -> list[str]:
    """Wrap a line outside tables; commands stay on one line, so that they can be copied."""
    indent = line[: len(line) - len(line.lstrip())]
    if line.lstrip().startswith("equirelax "):
        return [line]
    wrapped = textwrap.wrap(
        _plain(line), width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapped or [""]


def _cells(line: str) -> list[str]:
    """The cells of a row, without markup."""
    found = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    return [_plain(cell.strip().replace("\\|", "|")) for cell in found]


def _plain(text: str) -> str:
    """The text without the markup for bold."""
    return text.replace("**", "")


def _table(rows: list[list[str]], width: int) -> Iterator[str]:
    """A table with one line per row if that fits, else with one line per column, for as many rows at a time as fit."""
    rows = [row for row in rows if not all(_RULE.fullmatch(cell) for cell in row)]
    kept = [column for column in zip(*rows, strict=False) if any(column[1:])]
    widths = [max(map(len, column)) for column in kept]
    if sum(widths) + len(GAP) * (len(widths) - 1) <= width:
        for row in zip(*kept, strict=True):
            yield GAP.join(f"{cell:{size}}" for cell, size in zip(row, widths, strict=True)).rstrip()
        return
    labels, *bodies = zip(*kept, strict=True)
    least = min(max(map(len, labels)), width // 2)
    for number, block in enumerate(_blocks(bodies, width - least)):
        if number:
            yield ""
        sizes = [max(map(len, body)) for body in block]
        for label, *cells in zip(labels, *block, strict=True):
            first, *more = textwrap.wrap(label, least) or [""]
            values = GAP.join(f"{cell:{size}}" for cell, size in zip(cells, sizes, strict=True))
            yield f"{first:{least}}{GAP}{values}".rstrip()
            yield from more


def _blocks(bodies: Sequence[tuple[str, ...]], room: int) -> Iterator[list[tuple[str, ...]]]:
    """The rows of a table in groups that fit side by side, each of at least one row."""
    block: list[tuple[str, ...]] = []
    used = 0
    for body in bodies:
        needed = max(map(len, body)) + len(GAP)
        if block and used + needed > room:
            yield block
            block, used = [], 0
        block.append(body)
        used += needed
    if block:
        yield block
