"""Results on a terminal: tables and sentences fit it; a pipe gets the Markdown as it is."""

from __future__ import annotations

import sys

import pytest
from equirelax_lab.cli.terminal import fitted, show

NARROW = """A sentence.

| method | error |
| --- | ---: |
| strict | **1.25** |
| ace | 1.5 |

The end."""
WIDE = """| method | test MSE of the positions x1e-3 | relaxed → projected | published | a \\| b |
| --- | --- | --- | --- | --- |
| strict | **85.39** (projected) | 85.39 → 85.39 | | 1 |
| ace-augmented | **78.36** (projected) | 108.74 → 78.36 | | 2 |
| scheduled | 99.99 (projected) | 99.99 → 99.99 | | 3 |"""


def test_a_table_that_fits_is_aligned() -> None:
    assert fitted(NARROW, 80).splitlines() == [
        *("A sentence.", "", "method  error", "strict  1.25", "ace     1.5", "", "The end."),
    ]


def test_a_table_that_is_too_wide_stands_on_its_side_and_loses_nothing_but_empty_columns() -> None:
    text = fitted(WIDE, 60)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[0].split() == ["method", "strict"]
    assert [lines[0][:6], lines[1][:30].strip()] == ["method", "test MSE of the positions"]
    for part in ("85.39 (projected)", "108.74 → 78.36", "99.99 → 99.99", "ace-augmented", "a | b"):
        assert part in text
    assert "published" not in text
    assert text.count("relaxed → projected") == 3  # one block for each row here
    beside = fitted(WIDE, 70).splitlines()
    assert beside[0].split() == ["method", "strict", "ace-augmented"]


def test_sentences_are_wrapped_between_words() -> None:
    assert (
        fitted("  equirelax train nbody --method ace --seed 0", 30)
        == "  equirelax train nbody --method ace --seed 0"
    )
    assert fitted("  one two three", 10).splitlines() == ["  one two", "  three"]
    text = "word " * 40 + "lab/results/a-file-with-a-very-long-name/summary.md"
    lines = fitted(text, 30).splitlines()
    assert max(map(len, lines[:-1])) <= 30
    assert " ".join(lines).split() == text.split()


def test_a_pipe_gets_the_text_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show(WIDE)
    assert capsys.readouterr().out == f"{WIDE}\n"
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    show(WIDE)
    assert capsys.readouterr().out == f"{fitted(WIDE, 60)}\n"
