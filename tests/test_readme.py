"""The README's code runs, and its tables are those of the files that they name."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_code_of_the_readme_runs(capsys):
    pytest.importorskip("e3nn")
    torch.manual_seed(0)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["report"].relative < 1e-6
    assert not any("equirelax" in key for key in names["model"].state_dict())
    assert "equivariant" in capsys.readouterr().out


def first_table(text: str) -> list[str]:
    """Lines of the first table of a file; further tables are details."""
    after = itertools.dropwhile(lambda line: not line.startswith("|"), text.splitlines())
    return list(itertools.takewhile(lambda line: line.startswith("|"), after))


def test_the_tables_of_the_readme_are_those_of_the_results():
    tables = re.findall(r"<!-- from (\S+) -->\n(.*?)<!-- end -->", README, flags=re.DOTALL)
    assert len(tables) >= 2
    for source, text in tables:
        lines = first_table((ROOT / source).read_text())
        assert lines, f"{source} has no table"
        assert text.strip().splitlines() == lines, f"the README's copy of {source} is not what the file says"
