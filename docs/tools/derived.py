"""Files that the tools of this folder derive from lab/results: written, or with --check compared with the existing ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from equirelax_lab.report.numbers import Numbers

from equirelax.files import write_text


def with_tables(path: Path, text: str, table: Numbers) -> dict[Path, str]:
    """A Markdown file, and its table as CSV and LaTeX in the folder tables beside it."""
    return {path: text, **{path.parent / "tables" / name: own for name, own in table.files().items()}}


def stale(files: Mapping[Path, str]) -> list[Path]:
    """The files that are missing or have other content."""
    return [
        path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def write(files: Mapping[Path, str]) -> None:
    """Write every file, and create its folder if needed."""
    for path, text in files.items():
        write_text(path, text)
