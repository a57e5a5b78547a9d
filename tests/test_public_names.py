"""The names that `import equirelax as er` gives: few, all there, all on one page."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import equirelax as er

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "api" / "equirelax.md"


def test_the_list_of_public_names_is_short_and_is_the_page() -> None:
    rooms = {name for name in er.__all__ if isinstance(getattr(er, name), ModuleType)}
    assert rooms == {"auditing", "methods", "optim", "relaxation", "symmetry", "testing"}
    names = set(er.__all__) - rooms
    assert len(names) <= 20
    entries = re.findall(
        r"^::: equirelax\.(?:\w+\.)*(\w+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert sorted(entries) == sorted(names)


def test_nothing_public_is_missing_from_the_list() -> None:
    own = {name for name in vars(er) if not name.startswith("_") and name not in er.__all__}
    assert own <= {"errors", "files", "ranges", "zips"} | {
        n for n in own if isinstance(getattr(er, n), ModuleType)
    }


def test_type_checkers_are_told_of_the_same_names() -> None:
    """`equirelax/__init__.py` imports names when they are used, and once more for type checkers, which take a submodule before
    the function of its name."""
    tree = ast.parse(Path(er.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(imported) == sorted(er.__all__)
    for name, home in imported.items():
        assert getattr(importlib.import_module(str(home)), name) is getattr(er, name)
        if home != "equirelax" and hasattr(importlib.import_module(str(home)), "__path__"):
            assert importlib.util.find_spec(f"{home}.{name}") is None, f"{home}.{name} is a module too"


def test_the_table_of_old_names_leads_to_names_that_are_there() -> None:
    """Every `er.NAME` on its right exists, none of those that 0.2 took away does."""
    text = (PAGE.parents[3] / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = [
        line.split(" | ")
        for line in text.partition("| 0.1 | 0.2 |")[2].partition("\n## ")[0].splitlines()[2:]
    ]
    old, new = (
        re.findall(r"\ber\.(\w+(?:\.\w+)*)", " ".join(cells))
        for cells in zip(*filter(_two, rows), strict=True)
    )
    assert len(new) > 8
    assert [name for name in new if not _there(name)] == []
    kept = {"ACE"}
    assert [name for name in old if name not in kept and _there(name)] == []


def _two(cells: list[str]) -> bool:
    return len(cells) == 2


def _there(name: str) -> bool:
    found: object = er
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None
