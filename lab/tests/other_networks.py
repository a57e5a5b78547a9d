"""Other people's networks for tests: the examples that train them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str, needs: str) -> ModuleType:
    """The module `examples/<name>.py`; the test is skipped where the package `needs` is not installed."""
    pytest.importorskip(needs, reason=f"needs {needs}: pip install '.[examples]'")
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)
