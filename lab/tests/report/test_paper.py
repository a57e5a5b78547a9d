"""A page on paper: one column, nothing cut off, no control left, headings beside what they head. Read from the PDF."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from browser import QUIET, found_browser
from equirelax_lab.report.page import write_page
from equirelax_lab.report.runs import gather
from made import Make, comparison

COMMAND = "equirelax report runs/nbody"


def printed(page: Path, folder: Path) -> list[list[tuple[str, float, float]]]:
    """For every sheet the lines of its text: words, and where the line begins from the left and from below, in points."""
    pypdf = pytest.importorskip("pypdf")
    out = folder / "page.pdf"
    words = [found_browser(), *QUIET, f"--user-data-dir={folder / 'profile'}", "--no-pdf-header-footer"]
    done = subprocess.run(
        [*words, f"--print-to-pdf={out}", "--virtual-time-budget=8000", page.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert out.exists(), done.stderr[-2000:]
    return [_lines(pypdf, sheet) for sheet in pypdf.PdfReader(out).pages]


def _lines(pypdf: Any, sheet: Any) -> list[tuple[str, float, float]]:
    found: list[tuple[str, float, float]] = []

    def visit(text: str, around: Sequence[float], within: Sequence[float], *_: Any) -> None:
        if text.strip():
            *_, left, up = pypdf.mult(within, around)
            found.append((text.strip(), left, up))

    sheet.extract_text(visitor_text=visit)
    return found


@pytest.mark.slow
def test_on_paper_everything_stands_in_one_column(make: Make, tmp_path: Path) -> None:
    chapters = gather([comparison(make)])
    count = write_page(tmp_path / "report.html", chapters, command=COMMAND)
    sheets = printed(tmp_path / "report.html", tmp_path)
    width = 595  # A4 or letter, in points
    lines = [line for sheet in sheets for line in sheet]
    text = " ".join(" ".join(words for words, *_ in lines).split())
    assert all(20 < left < width - 20 for _, left, _ in lines)
    captions = [sum(words.startswith("The numbers") for words, *_ in sheet) for sheet in sheets]
    assert sum(captions) == count  # everything is open
    lefts = {round(left) for words, left, _ in lines if words.startswith("The numbers")}
    assert len(lefts) == 1, lefts
    for words in ("minus strict", "better seeds", "published", "projected: 1.0e-16", COMMAND):
        assert words in text, words
    for control in ("Open all sections", "LaTeX", "To the content"):
        assert control not in text
