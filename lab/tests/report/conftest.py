"""Folders of runs for every test of reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import Make, maker


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A function (method, seed, value, finished=True, parent="comparison", layers=...) -> folder of a run."""
    return maker(tmp_path)
