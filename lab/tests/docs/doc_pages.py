"""README.md and the pages of docs/ as tests read them: their code, run block after block, and their commands."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
from pathlib import Path
from typing import Any

import torch
from undisturbed import undisturbed

ROOT = Path(__file__).parents[3]
NOTEBOOKS = sorted((ROOT / "docs").glob("**/*.ipynb"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
# A block may be preceded by <!-- needs PACKAGE -->, or by <!-- slow -->.
BLOCK = re.compile(
    r"(?:<!-- (?:needs (?P<needs>\w+)|(?P<slow>slow)) -->\n)?```python\n(?P<code>.*?)```", flags=re.DOTALL
)
PROGRAMS = (
    "equirelax", "make", "mkdocs", "nequip-compile", "nequip-package", "nequip-train", "pip", "python", "tensorboard"
)  # fmt: skip
NAMED = re.compile(
    r"python -m(?: equirelax audit)?|equirelax (?:[a-z]+|data (?:make|get)(?: NAME)?|(?:[a-z]+ )?[A-Z]+(?: --help)?)"
)
INLINE = re.compile(rf"`((?:{'|'.join(PROGRAMS)}) [^`\n]+)`")
FENCED = re.compile(r"```(?P<language>\w*)\n(?P<text>.*?)```", flags=re.DOTALL)

INSERTED = re.compile(r"<!-- from .+?<!-- end -->", flags=re.DOTALL)


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
    """Commands in fenced blocks and between backticks, without remarks, which follow three spaces or a #."""
    text, found = _words(page), []
    for block in FENCED.finditer(text):
        if block["language"] in ("", "console", "bash"):
            lines = [re.split(r"\s{3,}|(?:^|\s+)# |; ", line)[0] for line in block["text"].splitlines()]
            assert all(line.split()[0] in PROGRAMS for line in lines if line), (name_of(page), lines)
            found += [line for line in lines if line]
    return found + [line for line in _inline(text) if not NAMED.fullmatch(line)]


def named(page: Path) -> list[str]:
    """Commands of equirelax that the text names without arguments, or with words in capitals for the reader's own."""
    return [line for line in _inline(_words(page)) if NAMED.fullmatch(line)]


def _words(page: Path) -> str:
    """The page's own text, without what is inserted from results; of a notebook that of its cells without code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return INSERTED.sub("", text)
    return "\n\n".join(
        "".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"
    )


def _inline(text: str) -> list[str]:
    return INLINE.findall(FENCED.sub("", text))
