"""The names that `import equirelax as er` gives: few, all there, all on one page."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import equirelax as er

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "equirelax.md"


def test_the_list_of_public_names_is_short_and_is_the_page() -> None:
    rooms = {name for name in er.__all__ if isinstance(getattr(er, name), ModuleType)}
    assert rooms == {"auditing", "methods", "penalties", "relaxation", "symmetry", "testing"}
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
