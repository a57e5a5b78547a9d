"""Help texts: they fit the terminal, and examples in them can be copied and are about the benchmark that was asked for."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import pytest
from equirelax_lab.cli import main
from equirelax_lab.cli.help import filled
from equirelax_lab.cli.main import COMMANDS

WIDTH = 80


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with contextlib.suppress(SystemExit):  # argparse leaves by itself after help
        main([*words, "--help"])
    return capsys.readouterr().out


def test_a_text_is_filled_and_what_is_indented_is_kept() -> None:
    text = (
        "One\ntwo three.\n\nlist:\n  a        some words\n\n"
        "  equirelax train nbody --method ace --model segnn --out runs/here"
    )
    assert filled(text, 24).splitlines() == [
        *("One two three.", "", "list:", "  a        some words", ""),
        *(
            "  equirelax train \\",
            "      nbody \\",
            "      --method ace \\",
            "      --model segnn \\",
            "      --out runs/here",
        ),
    ]
    assert filled("  name  what it is in many words", 20).splitlines() == [
        *("  name  what it is", "        in many", "        words"),
    ]


@pytest.mark.parametrize(
    "words",
    [[], *([name] for name in COMMANDS), ["train", "mocap"], ["compare", "smoke"], ["data", "make"]],
    ids=str,
)
def test_help_fits_the_terminal(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    lines = help_of(words, capsys).splitlines()
    assert len(lines) > 3
    assert [line for line in lines if len(line) > WIDTH] == []


@pytest.mark.parametrize(
    ("words", "items"),
    [(["data", "get"], ["modelnet40", "rmd17", "md17", "qm9", "mnist"]), (["demo"], ["1", "2", "3"])],
    ids=["data get", "demo"],
)
def test_every_item_of_a_list_has_a_line_of_its_own(
    words: list[str], items: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    lines = help_of(words, capsys).splitlines()
    assert [item for item in items if not any(line.startswith(f"  {item}  ") for line in lines)] == []


@pytest.mark.parametrize(
    ("command", "benchmark"),
    [("train", "nbody"), ("train", "mocap"), ("compare", "mocap"), ("compare", "smoke")],
)
def test_examples_are_about_the_benchmark_and_can_be_run(
    command: str,
    benchmark: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("EQUIRELAX_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    text = help_of([command, benchmark], capsys).replace("\\\n", "")
    examples = [line.strip() for line in text.partition("examples:\n")[2].partition("\n\n")[0].splitlines()]
    assert len(examples) >= 4
    for example in examples:
        words = shlex.split(example)[1:]
        assert words[:2] == [command, benchmark]
        if "--config" in words:
            continue
        assert main(words) == 2  # there are no data here: everything else was accepted
        assert "is missing" in capsys.readouterr().err, example
