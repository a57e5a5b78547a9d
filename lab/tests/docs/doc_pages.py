"""README.md and the pages of docs/ as tests read them: their code, run block after block, and their commands."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import torch
from undisturbed import undisturbed

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
# A block may be preceded by <!-- needs PACKAGE -->, or by <!-- slow -->.
BLOCK = re.compile(
    r"(?:<!-- (?:needs (?P<needs>\w+)|(?P<slow>slow)) -->\n)?```python\n(?P<code>.*?)```", flags=re.DOTALL
)
COMMAND = re.compile(r"^equirelax .*$", flags=re.MULTILINE)
FENCED = re.compile(r"```(?P<language>\w*)\n(?P<text>.*?)```", flags=re.DOTALL)


def name_of(page: Path) -> str:
    """The page's path inside the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[re.Match[str]]:
    """Its blocks of Python; none is written in a way that would be missed."""
    text = page.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    assert len(found) == text.count("```python") == len(re.findall(r"```(?:python|py)\b", text))
    return found


def run(page: Path, slow: bool = False) -> tuple[dict[str, Any], str]:
    """Run a page's blocks in one namespace; return it, and what was printed.

    Blocks that need a package which is not installed are left out, and slow ones unless `slow`.
    """
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with undisturbed(), contextlib.redirect_stdout(printed):
        for block in blocks(page):
            if (block["needs"] and importlib.util.find_spec(block["needs"]) is None) or (
                block["slow"] and not slow
            ):
                continue
            torch.set_default_dtype(torch.float32)
            exec(compile(block["code"], name_of(page), "exec"), names)
    return names, printed.getvalue()


def commands(page: Path) -> list[str]:
    """Command lines of equirelax in fenced blocks, without remarks, which follow after three spaces or more or in brackets."""
    found = []
    for block in FENCED.finditer(page.read_text(encoding="utf-8")):
        if block["language"] in ("", "console", "bash"):
            found += [re.split(r"\s{3,}|; ", line)[0] for line in COMMAND.findall(block["text"])]
    return found
