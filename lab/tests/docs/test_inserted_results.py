"""Tables and sentences of lab/results/ stand in README.md and docs/ as the files have them, put there by the script."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT, name_of

sys.path.insert(0, str(ROOT / "docs" / "tools"))
import insert_results
from insert_results import MARKED, InsertError, inserted

SUMMARY = """# Toy

| method | error | seconds |
| --- | --- | --- |
| strict | 1 | 2 |

Three seeds.

| detail |
| --- |
| 5 |

No difference.
"""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_page_says_what_the_results_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert inserted(text) == text, (
        f"{name_of(page)} differs from lab/results/: python docs/tools/insert_results.py"
    )
    assert len(MARKED.findall(text)) == len(re.findall("<!-- from ", text)) == text.count("<!-- end -->")


def test_readme_and_benchmarks_have_tables() -> None:
    for name, least in (("README.md", 1), ("docs/benchmarks.md", 30)):
        text = (ROOT / name).read_text(encoding="utf-8")
        found = MARKED.findall(text)
        assert len(found) >= least
        assert all(re.search(r"from lab/results/", marker[0]) for marker in found)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "lab" / "results").mkdir(parents=True)
    (tmp_path / "lab" / "results" / "summary.md").write_text(SUMMARY)
    (tmp_path / "lab" / "results" / "times.txt").write_text("a  1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "content"),
    [
        ("summary.md", "| method | error | seconds |\n| --- | --- | --- |\n| strict | 1 | 2 |\n"),
        ("summary.md: seconds | method", "| seconds | method |\n| --- | --- |\n| 2 | strict |\n"),
        ("summary.md: table detail", "| detail |\n| --- |\n| 5 |\n"),
        ("summary.md: setting", "Three seeds.\n"),
        ("summary.md: conclusion", "No difference.\n"),
        ("times.txt", "```text\na  1\n```\n"),
        ("none.md if there", ""),
        ("summary.md if there: setting", "Three seeds.\n"),
    ],
)
def test_what_a_marker_asks_for(root: Path, asked: str, content: str) -> None:
    before = f"Before.\n<!-- from lab/results/{asked} -->\nold\n<!-- end -->\nAfter.\n"
    after = inserted(before, root)
    assert after == before.replace("old\n", content)
    assert inserted(after, root) == after


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("none.md", "lab/results/none.md"),
        ("summary.md: error | sceonds", "'sceonds'.*method, error, seconds"),
        ("summary.md: table detial", "'detial'"),
    ],
)
def test_what_is_not_there_is_named(root: Path, asked: str, named: str) -> None:
    with pytest.raises(InsertError, match=named):
        inserted(f"<!-- from lab/results/{asked} -->\n<!-- end -->\n", root)


def test_no_inserted_table_hides_the_settings_in_which_its_rows_differ(root: Path) -> None:
    line = "**Settings that differ between rows**: learning rate 1 (strict), 2 (ace)."
    text = SUMMARY.replace("Three seeds.", f"{line}\n\nThree seeds.")
    (root / "lab" / "results" / "summary.md").write_text(text)
    for part in ("", ": method | error"):
        after = inserted(f"<!-- from lab/results/summary.md{part} -->\n<!-- end -->\n", root)
        assert f"|\n\n{line}\n<!-- end -->" in after
    after = inserted("<!-- from lab/results/summary.md: setting -->\n<!-- end -->\n", root)
    assert after.splitlines()[1] == "Three seeds."


def test_the_line_is_found_by_the_words_that_tables_have() -> None:
    pytest.importorskip("lightning")
    from equirelax_lab.report.rows import TITLE

    assert f"**{TITLE}**" == insert_results.DIFFERING


@pytest.mark.parametrize("path", sorted(ROOT.glob("lab/results/**/summary.md")), ids=lambda p: p.parent.name)
def test_every_committed_comparison_says_in_which_settings_its_rows_differ(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if "minus strict (paired)" in text:
        assert insert_results.DIFFERING in text, f"{path}: equirelax summarise lab/results"


def test_a_file_without_tables_has_no_setting(root: Path) -> None:
    (root / "lab" / "results" / "words.md").write_text("Words alone.\n")
    with pytest.raises(InsertError, match="no setting"):
        inserted("<!-- from lab/results/words.md: setting -->\n<!-- end -->\n", root)


def test_check_finds_a_stale_page(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = root / "README.md"
    page.write_text("<!-- from lab/results/summary.md: setting -->\nFour seeds.\n<!-- end -->\n")
    monkeypatch.setattr(insert_results, "ROOT", root)
    monkeypatch.setattr(insert_results, "pages", lambda: [page])
    monkeypatch.setattr(insert_results, "inserted", lambda text: inserted(text, root))
    assert insert_results.main(["--check"]) == 1
    assert "README.md differs" in capsys.readouterr().out
    assert "Four" in page.read_text()
    assert insert_results.main([]) == 0
    assert "Three" in page.read_text()
    assert insert_results.main(["--check"]) == 0
