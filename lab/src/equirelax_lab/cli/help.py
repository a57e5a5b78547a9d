"""Layout of help texts: as wide as the terminal, with paragraphs filled, and columns and examples kept."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator

NARROWEST, WIDEST = 40, 110
"""Limits on the columns of a help text, whatever the width of the terminal."""
FLAGS = 28
"""The column in which the explanations of flags begin."""
_COLUMNS = re.compile(r"(\s+\S(?:.*?\S)?\s{2,})(\S.*)")
"""A line of two columns: an indented name, and its explanation after two or more blanks."""


def columns() -> int:
    """Columns of a help text on this terminal; 80 if there is none."""
    return min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)


def filled(text: str, width: int) -> str:
    """Fill a text into lines of at most `width` columns.

    Lines that begin at the margin are joined into paragraphs. Indented lines are kept. Where one is too long, its second column
    is wrapped, and a command is continued with a backslash, so that it can be copied.
    """
    lines: list[str] = []
    paragraph: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line[:1].strip():
            paragraph.append(line)
            continue
        lines += _wrap(" ".join(paragraph), width)
        paragraph = []
        lines += [line] if len(line) <= width else _wrapped(line, width)
    return "\n".join(lines).rstrip("\n")


def _wrapped(line: str, width: int) -> list[str]:
    """Wrap an indented line that is too long."""
    first = line[: len(line) - len(line.lstrip())]
    found = _COLUMNS.fullmatch(line)
    if found is None and line.lstrip().startswith("equirelax "):
        # A flag stays beside its value.
        glued = re.sub(r"(--?\w\S*) (?=[^-\s])", "\\1\0", line.lstrip())
        parts = _wrap(glued, width - 2, first, f"{first}    ")
        return [f"{part} \\".replace("\0", " ") for part in parts[:-1]] + [parts[-1].replace("\0", " ")]
    if found is None or width - len(found[1]) < width // 3:  # no room for the second column beside the first
        return _wrap(line.lstrip(), width, first, f"{first}  ")
    return _wrap(found[2], width, found[1], " " * len(found[1]))


def _wrap(text: str, width: int, head: str = "", indent: str = "") -> list[str]:
    """Lines of a paragraph; words and flags are not broken."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=head,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


class Filled(argparse.RawDescriptionHelpFormatter):
    """Formats descriptions and epilogs with `filled`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=FLAGS, width=columns())

    def start_section(self, heading: str | None) -> None:
        """Begin a group of flags; its title is filled as well."""
        super().start_section(None if heading is None else "\n".join(_wrap(heading, self._width - 1)))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return filled(text, width)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrap(" ".join(text.split()), width)


def rows(pairs: Iterable[tuple[str, str]], indent: int = 2) -> Iterator[str]:
    """Lines of two columns, which `filled` wraps."""
    table = list(pairs)
    width = max((len(name) for name, _ in table), default=0)
    return (f"{'':{indent}}{name:{width}}  {what}" for name, what in table)
