"""Notebooks are committed without outputs, stand in the navigation, and become pages; a cell that raises stops the build."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from doc_pages import NOTEBOOKS, ROOT

pytest.importorskip("nbclient", reason="needs the extra docs")
import nbformat
from mkdocs.exceptions import PluginError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

sys.path.insert(0, str(ROOT / "docs" / "tools"))
import notebooks

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(notebook: Path) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    nbformat.validate(content)
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert code
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []
    assert set(content["metadata"]) == {"kernelspec", "language_info"}
    assert content["cells"][0]["source"][0].startswith("# ")


def test_notebooks_stand_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    names = [str(path.relative_to(ROOT / "docs").with_suffix(".md")) for path in NOTEBOOKS]
    assert len(names) >= 3
    assert [name for name in names if f": {name}\n" not in text] == []


def test_cells_become_a_page() -> None:
    drawn = new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})
    table = new_output("execute_result", {"text/html": "<table></table>", "text/plain": "rows"})
    content = new_notebook(
        cells=[
            new_markdown_cell("# Title\n\nWords."),
            new_code_cell("print(1)", outputs=[new_output("stream", text="1\n")]),
            new_code_cell("draw()", outputs=[drawn], metadata={"alt": "a red dot"}),
            new_code_cell("rows", outputs=[table]),
            new_code_cell("%%bash\nequirelax list"),
        ]
    )
    page, pictures = notebooks.as_page(content, "name")
    assert page.startswith('# Title\n\nWords.\n\n<p class="notebook"><a href="name.ipynb" download>')
    assert "```python\nprint(1)\n```" in page
    assert "```text\n1\n```" in page
    assert "![a red dot](name-1.png)" in page
    assert "<table></table>" in page
    assert "rows\n```\n\n<div" in page
    assert "<Figure>" not in page
    assert "```console\nequirelax list\n```" in page
    assert pictures["name-1.png"].startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_cell_that_raises_stops_the_build(tmp_path: Path) -> None:
    notebook = tmp_path / "broken.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("number = 1"), new_code_cell("number / 0")]), notebook)
    with pytest.raises(PluginError, match=r"(?s)broken\.ipynb.*number / 0.*ZeroDivisionError"):
        notebooks.executed(notebook)
