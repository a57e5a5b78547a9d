"""Folders of runs for every test of reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import Make, maker

from equirelax.files import write_text


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A function (method, seed, value, finished=True, parent="comparison", layers=...) -> folder of a run."""
    return maker(tmp_path)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not drawn, which takes most of the time: for tests that look at something else."""
    monkeypatch.setattr("equirelax_lab.report.page.svg", lambda *_: '<svg><path d="M0 0"/></svg>')
    monkeypatch.setattr("equirelax_lab.report.comparison.png", lambda path, *_, **__: write_text(path, ""))
