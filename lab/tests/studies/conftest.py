"""A tiny study on tiny data: runs of a few seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

TINY: dict[str, Any] = {
    "title": "Tiny",
    "benchmark": "nbody",
    "methods": ["strict", "scheduled"],
    "seeds": 1,
    "settings": {
        "epochs": 2,
        "batch_size": 20,
        "validate_every": 1,
        "dataset": {"train": 48, "val": 24, "test": 24},
        "network": {"layers": 1, "hidden": 16},
    },
}


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[..., Path]:
    """A function (**changes of the keys) -> path of a study file."""

    def write(name: str = "tiny", **changes: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        values = {key: value for key, value in {**TINY, **changes}.items() if value is not None}
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write
