"""escnn needs numpy < 2 and so an environment of its own, which `make test-escnn` makes; elsewhere nothing here runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave the files alone, which import escnn, where it is not installed."""
    missing = importlib.util.find_spec("escnn") is None
    return True if missing and collection_path.suffix == ".py" else None


def pytest_report_header() -> str:
    """Say why, at the head of a run."""
    if importlib.util.find_spec("escnn") is None:
        return "tests/with_escnn left out: escnn is not installed here (make test-escnn)"
    return "tests/with_escnn: with escnn"


@pytest.fixture(autouse=True)
def _float32() -> None:
    """escnn can be built with the default dtype float32 only; a test that leaves another one fails here, not elsewhere."""
    import torch

    assert torch.get_default_dtype() == torch.float32
