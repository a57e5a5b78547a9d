"""The board: a table on a terminal, lines elsewhere; it never fails over half-written metrics."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from equirelax_lab.studies.live import Board, counts, line
from equirelax_lab.studies.spec import read_study
from equirelax_lab.studies.state import State, states
from equirelax_lab.studies.trials import trials
from rich.console import Console


@pytest.fixture
def found(study_file: Callable[..., Path], tmp_path: Path) -> list[State]:
    all_ = states(trials(read_study(study_file(seeds=3, settings={"epochs": 10}))), tmp_path)
    all_[1].status, all_[1].attempts = "running", 2
    all_[2].status, all_[2].reason = "failed", "no [data]"
    all_[3].status = "finished"
    all_[1].folder.mkdir()
    (all_[1].folder / "metrics.csv").write_text("epoch,val/best,seconds\n0,,2.0\n3,0.123456,8.0\n4,0.1")
    return all_


def test_a_terminal_shows_a_table(found: list[State]) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=110, height=40, color_system=None)
    with Board("Title", console) as board:
        board.show(found)
    text = stream.getvalue()
    row = next(row for row in text.splitlines() if "running, attempt 2" in row)
    # four of ten epochs in eight seconds: twelve are left
    assert all(part in row for part in ("scheduled-seed0", "4/10", "0.1235", "12 s"))
    assert "failed: no [data]" in text
    assert "1 of 6 runs finished, 1 running, 3 waiting, 1 failed" in text


def test_the_table_says_where_a_run_is(found: list[State]) -> None:
    found[1].where = "node-b"
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=110, height=40, color_system=None)
    with Board("Title", console) as board:
        board.show(found)
    assert "running on node-b, attempt 2" in stream.getvalue()


def test_a_low_terminal_shows_what_runs(found: list[State]) -> None:
    stream = io.StringIO()
    with Board(
        "T", Console(file=stream, force_terminal=True, width=110, height=5, color_system=None)
    ) as board:
        board.show(found)
    assert "scheduled-seed0" in stream.getvalue()
    assert "scheduled-seed2" not in stream.getvalue()


def test_elsewhere_changes_are_lines(found: list[State], capsys: pytest.CaptureFixture[str]) -> None:
    with Board("T", Console(file=io.StringIO())) as board:
        board.show(found)
        assert capsys.readouterr().out == ""
        found[0].status = "running"
        found[1].status = "finished"
        found[4].attempts, found[4].reason = 1, "ended by SIGKILL"
        board.show(found)
        found[5].status, found[5].reason = "failed", "diverged"
        board.show(found)
    assert capsys.readouterr().out.splitlines() == [
        "scheduled-seed0: finished",
        "strict-seed2: broken, to be tried again (ended by SIGKILL)",
        "scheduled-seed2: failed (diverged)",
    ]


def test_lines_say_where_the_runs_are(found: list[State]) -> None:
    assert line(found) == f"{counts(found)}; scheduled-seed0: epoch 4/10"
    found[0].status = "running"
    assert line(found).endswith("strict-seed0: epoch 0/10; scheduled-seed0: epoch 4/10")
