"""The page on auditing any network: its commands are run on the network that it shows, and print what it says."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from doc_pages import ROOT, blocks

from equirelax.command.main import main

torch.set_num_threads(1)
PAGE = ROOT / "docs" / "how_to" / "audit_any_network.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?: {4})?python -m equirelax (audit .*)$", TEXT, flags=re.MULTILINE)
BROKEN = "limit=True"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's network."""
    (tmp_path / "mynet.py").write_text(blocks(PAGE)[0]["code"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    return tmp_path


def test_commands_are_found() -> None:
    assert len(COMMANDS) == TEXT.count("python -m equirelax audit ") == 4
    assert sum(BROKEN in line for line in COMMANDS) == 1


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_does_what_the_page_says(
    line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(shlex.split(line)) == (1 if BROKEN in line else 0)
    finally:
        sys.modules.pop("mynet", None)
    printed = without_rounding(capsys.readouterr().out)
    for name in re.findall(r"--(?:html|json) (\S+)", line):
        assert (folder / name).stat().st_size > 0
    if BROKEN in line:
        (shown,) = re.findall(r"```text\n(.*?)```", TEXT, flags=re.DOTALL)
        for wanted in without_rounding(shown):
            assert wanted == "..." or wanted in printed, wanted


def without_rounding(text: str) -> list[str]:
    """Lines whose errors of rounding, which machines have each of their own, are replaced by a word."""
    return re.sub(r"\d\.\d\de-1[4-9]", "rounding", text).splitlines()


def test_the_workflow_is_yaml() -> None:
    yaml = pytest.importorskip("yaml")
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    steps = yaml.safe_load(block)
    assert [set(step) for step in steps] == [{"name", "run"}, {"uses", "if", "with"}]
