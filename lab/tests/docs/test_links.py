"""Links of the files that GitHub shows lead to files and headings that are there; the site's are checked as it is built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_pages import ROOT, name_of

FILES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "lab/results/README.md")]
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([\w-]+))?\)")


def headings(page: Path) -> set[str]:
    """Its anchors: headings in small letters, with hyphens for spaces and without other signs."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


@pytest.mark.parametrize("page", FILES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in headings(file)):
            wrong.append(f"{target}#{anchor}")
    assert wrong == []
