"""Commands in README.md and docs/ are ones that the command line takes: parsed by the real parsers, and not run."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from doc_pages import PAGES, ROOT, commands, name_of

pytest.importorskip("jsonargparse")
from equirelax_lab.cli import main, options
from equirelax_lab.cli.main import COMMANDS
from equirelax_lab.studies.study import ready_names

# line -> the first page that has it
FOUND = {line: name_of(page) for page in reversed(PAGES) for line in commands(page)}


class Parsed(BaseException):
    """Everything was understood, and work would begin."""


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands stop where they would begin to work."""
    parse = options.parse

    def stop(*_: Any, **__: Any) -> None:
        raise Parsed

    def parse_and_stop(parser: Any, *rest: Any, **ranges: Any) -> Any:
        parsed = parse(parser, *rest, **ranges)
        # These two make settings of what was parsed, or parse for every run, before they work.
        if parser.prog.startswith(("equirelax train", "equirelax compare")):
            return parsed
        raise Parsed

    monkeypatch.setattr(options, "parse", parse_and_stop)
    # Every run of a comparison is parsed: one seed will do.
    monkeypatch.setattr("equirelax_lab.cli.compare._seeds", lambda text: (int(text.split(",")[0]),))
    monkeypatch.setattr("equirelax_lab.cli.study.check_data", stop)
    monkeypatch.setattr("equirelax_lab.training.run.train", stop)
    for name in ("equirelax.command.audit.audit_network", "equirelax_lab.cli.audit.audit_run"):
        monkeypatch.setattr(name, stop)


def test_commands_are_found() -> None:
    assert len(FOUND) >= 40
    assert {line.split()[1] for line in FOUND} == set(COMMANDS)


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("line", FOUND, ids=str)
def test_the_command_line_takes_it(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line, comments=True)[1:]
    if "--help" in words:
        with contextlib.suppress(SystemExit):
            assert main(words) == 0
        assert "usage: equirelax" in capsys.readouterr().out
    else:
        with pytest.raises(Parsed):
            pytest.fail(f"exit code {main(words)}: {capsys.readouterr().err}")


def test_misspelt_flags_would_be_noticed(stopped: None) -> None:
    assert main(shlex.split("train nbody --model segnn --method ace --learning_rat 1")) == 2
    assert main(shlex.split("compare nbody --methods strict,aec")) == 2
    assert main(shlex.split("study run FILE.yaml --job 2")) == 2


def test_ready_studies_that_pages_name_are_there() -> None:
    """Names that are written small; FILE and NAME stand for the reader's own."""
    pattern = re.compile(
        r"equirelax (?:reproduce|search|study (?:run|estimate|show)) ([a-z][a-z0-9-]+)(?= |$)"
    )
    named = {match[1] for line in FOUND if (match := pattern.match(line))}
    assert len(named) >= 4
    assert named <= {*ready_names(), *ready_names(searches=True)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|examples|studies|docs)/[\w./]+\.(?:py|yaml|md))`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
