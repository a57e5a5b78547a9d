"""All code in README.md and docs/ runs as it stands there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
from doc_pages import FENCED, PAGES, ROOT, blocks, name_of, run

torch.set_num_threads(1)
WITH_CODE = [page for page in PAGES if blocks(page)]
SLOW = [page for page in WITH_CODE if any(block["slow"] for block in blocks(page))]


def test_pages_with_code_are_found() -> None:
    found = {name_of(page) for page in WITH_CODE}
    assert {"README.md", "docs/index.md", "docs/how_to/relax_your_own_network.md"} < found
    assert sum(len(blocks(page)) for page in WITH_CODE) >= 30
    assert [name_of(page) for page in SLOW] == ["docs/how_to/compile_amp_ddp.md"]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_runs(page: Path) -> None:
    pytest.importorskip("e3nn")
    run(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=name_of)
def test_the_slow_code_runs_too(page: Path) -> None:
    run(page, slow=True)


def test_the_readme_ends_with_an_equivariant_network() -> None:
    pytest.importorskip("e3nn")
    names, printed = run(ROOT / "README.md")
    model, torch = names["model"], names["torch"]
    assert names["er"].audit(model, torch.randn(10, 8), "2x0e + 2x1o", "1x1o").relative < 1e-6
    assert not any("equirelax" in key for key in model.state_dict())
    shown = FENCED.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    output = next(text for language, text in shown if language == "text")
    assert _without_numbers(printed).startswith(_without_numbers(output.removesuffix("...\n")))


def _without_numbers(text: str) -> str:
    return re.sub(r"\d[\d.]*(e[-+]\d+)?", "#", text)


def test_the_page_on_own_networks_names_what_is_broken() -> None:
    page = ROOT / "docs" / "how_to" / "relax_your_own_network.md"
    assert len(blocks(page)) >= 6
    assert {block["needs"] for block in blocks(page) if block["needs"]} == {
        "nequip",
        "equiformer_pytorch",
        "egnn_pytorch",
        "torch_geometric",
    }
    printed = run(page)[1]
    assert "first break: 1 (Broken)" in printed
    assert "nothing to relax in Sequential" in printed
    (own,) = (block for block in blocks(page) if "class ReadsState(Reader)" in block["code"])
    assert sum(bool(line.strip()) for line in own["code"].splitlines()) <= 25


def test_the_tolerances_on_the_page_are_those_of_the_tests() -> None:
    constants = runpy.run_path(str(ROOT / "lab" / "tests" / "integration" / "tolerances.py"))
    text = (ROOT / "docs" / "how_to" / "compile_amp_ddp.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (\d[\d.e-]*) \|$", text, flags=re.MULTILINE)
    names = ("ROUNDING", "SINGLE", "COMPILED", "BFLOAT16", "BFLOAT16_WEIGHTS")
    assert [float(value) for _, value in rows] == [constants[name] for name in names]
