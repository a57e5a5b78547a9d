"""A page on paper, read from its PDF: one column, nothing wider than the sheet, everything open, no control left."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser import QUIET, found_browser
from equirelax_lab.report.page import write_page
from equirelax_lab.report.runs import gather
from made import Make, comparison

COMMAND = "equirelax report runs/nbody"


@dataclass(frozen=True)
class Text:
    """Words on a sheet: where they begin, from the left and from below, and the size of their font, in points."""

    words: str
    left: float
    up: float
    size: float


def printed(page: Path, folder: Path) -> list[list[Text]]:
    """The text of every sheet."""
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
    return [_texts(pypdf, sheet) for sheet in pypdf.PdfReader(out).pages]


def _texts(pypdf: Any, sheet: Any) -> list[Text]:
    found: list[Text] = []

    def visit(words: str, around: Sequence[float], within: Sequence[float], _: Any, size: float) -> None:
        if words.strip():
            *_, scale, left, up = pypdf.mult(within, around)
            found.append(Text(words.strip(), left, up, abs(scale) * size))

    sheet.extract_text(visitor_text=visit)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_on_paper_everything_stands_in_one_column_and_fits_its_width(make: Make, tmp_path: Path) -> None:
    for rate in (1, 2, 3, 4):
        folder = comparison(make, learning_rate=rate / 1000)
    count = write_page(tmp_path / "report.html", gather([folder]), "A title", COMMAND)
    sheets = printed(tmp_path / "report.html", tmp_path)
    every = [text for sheet in sheets for text in sheet]
    told = " ".join(" ".join(text.words for text in every).split())
    title = next(text for text in every if text.words == "A title")
    assert title.size == pytest.approx(17, abs=0.5)  # a page with something too wide is made smaller
    assert all(20 < text.left < 575 for text in every)  # A4 is 595 points wide
    opened = [text for text in every if text.words.startswith("The numbers")]
    assert len(opened) == count
    assert len({round(text.left) for text in opened}) == 1
    for words in ("minus strict", "better seeds", "published", "projected: 1.0e-16", COMMAND):
        assert words in told, words
    for control in ("Open all sections", "LaTeX", "To the content"):
        assert control not in told
