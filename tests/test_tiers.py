"""`make test` and its relatives: what runs alone, and what fails for its cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import run_tiers


def test_what_starts_several_processes_runs_alone() -> None:
    for path in Path(__file__).parent.rglob("test_*.py"):
        text = path.read_text("utf-8")
        if path.name != Path(__file__).name and "mark.ddp" in text:
            assert "mark.serial" in text, path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that are run, none of them really; they cost 300 s on the reference core."""
    given: list[list[str]] = []

    def run(words: list[str], **_: object) -> SimpleNamespace:
        given.append(words)
        return SimpleNamespace(returncode=0)

    seconds = iter([100.0, 400.0])
    monkeypatch.setattr(run_tiers, "children_seconds", lambda: next(seconds))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: "55.0 14000.0\n")
    return given


@pytest.mark.parametrize(("budget", "code"), [(301, 0), (299, 1)])
def test_more_than_the_budget_fails(
    budget: int,
    code: int,
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_tiers.py", "fast", "--budget", str(budget)])
    assert run_tiers.main() == code
    printed = capsys.readouterr().out
    assert "300 s of CPU on the reference" in printed
    assert ("more than the budget" in printed) is (code == 1)
    together, serial = commands
    assert together[together.index("-m", 3) + 1] == "not slow and not serial"
    assert serial[serial.index("-m", 3) + 1] == "not slow and serial"
    assert str(Path(__file__).parents[1] / "lab/tests/integration/test_ddp.py") in serial


@pytest.mark.parametrize(("gflops", "steps"), [(110.0, 28000.0), (110.0, 90000.0), (170.0, 28000.0)])
def test_faster_cores_have_less_time(
    gflops: float,
    steps: float,
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The smaller of the two ratios to the reference counts; it is 2."""
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: f"{gflops} {steps}\n")
    monkeypatch.setattr(sys, "argv", ["run_tiers.py", "share", "3/8", "--budget", "599"])
    assert run_tiers.main() == 1
    assert "600 s of CPU on the reference" in capsys.readouterr().out
    assert all(words[-2:] == ["--slow-share", "3/8"] for words in commands)


@pytest.mark.usefixtures("commands")
def test_what_it_took_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = tmp_path / "times.txt"
    monkeypatch.setattr(sys, "argv", ["run_tiers.py", "fast", "--record", str(record)])
    assert run_tiers.main() == 0
    assert "300 s of CPU on the reference" in record.read_text("utf-8")


@pytest.mark.parametrize(("words", "ignored"), [(["fast"], True), (["share", "3/8"], True), (["all"], False)])
def test_published_networks_are_left_to_their_own_target(
    words: list[str], ignored: bool, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_tiers.py", *words])
    run_tiers.main()
    folder = str(Path(__file__).parent / "networks")
    assert all((folder in command) is ignored for command in commands)
    assert f"{Path(folder).parent.name}/networks" in (Path(__file__).parents[1] / "Makefile").read_text(
        "utf-8"
    )
