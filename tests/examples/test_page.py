"""The code of docs/relax_your_own_network.md runs, block after block."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from other_networks import undisturbed

PAGE = Path(__file__).parents[2] / "docs" / "relax_your_own_network.md"
BLOCKS = re.compile(r"(?:<!-- needs (\w+) -->\n)?```python\n(.*?)```", flags=re.DOTALL)


def test_the_code_of_the_page_runs(capsys: Any) -> None:
    """Blocks that need another package are left out where it is not installed."""
    blocks = BLOCKS.findall(PAGE.read_text())
    assert len(blocks) == PAGE.read_text().count("```python") >= 6
    assert {needs for needs, _ in blocks if needs} == {"nequip", "equiformer_pytorch", "egnn_pytorch"}
    names: dict[str, Any] = {}
    exec("import torch\nimport equirelax as er", names)
    with undisturbed():
        for needs, block in blocks:
            if needs and importlib.util.find_spec(needs) is None:
                continue
            torch.set_default_dtype(torch.float32)
            exec(compile(block, PAGE.name, "exec"), names)
    assert "first break: 1 (Broken)" in capsys.readouterr().out


def test_files_that_the_page_names_exist() -> None:
    root = PAGE.parents[1]
    named = re.findall(r"`((?:tests|examples)/[\w./]+\.py)`", PAGE.read_text())
    assert len(named) >= 3
    assert all((root / name).exists() for name in named)
