"""Every command in README.md and docs/ stands in commands.txt, with what is done with it here: run, parsed, or looked up."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doc_pages import FENCED, NOTEBOOKS, PAGES, ROOT, commands, name_of, named

pytest.importorskip("jsonargparse")
from equirelax_lab.cli import main, options
from equirelax_lab.cli.main import COMMANDS
from equirelax_lab.studies.study import ready_names

LIST = Path(__file__).with_name("commands.txt")
# command -> the first page that has it
FOUND = {line: name_of(page) for page in reversed([*PAGES, *NOTEBOOKS]) for line in commands(page)}


def listed() -> dict[str, list[str]]:
    """The commands of commands.txt by the word in the head above them."""
    sections: dict[str, list[str]] = {}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if head := re.match(r"\[(\w+)\]", line):
            lines = sections.setdefault(head[1], [])
        elif line and not line.startswith("#"):
            lines.append(line)
    return sections


LISTED = listed()
TESTED = dict(line.split("  <- ") for line in LISTED["elsewhere"])
"""Command -> file of the test that runs it, or tests what it does."""


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


def test_the_list_is_that_of_the_pages() -> None:
    own = [line for way, lines in LISTED.items() if way != "elsewhere" for line in lines] + list(TESTED)
    assert len(own) == len(set(own)), "a command stands twice in commands.txt"
    missing = {line: page for line, page in FOUND.items() if line not in own}
    assert not missing, (
        "add these to lab/tests/docs/commands.txt, under the head that says what is done with them"
    )
    assert [line for line in own if line not in FOUND] == [], (
        "no page has these any more: take them out of commands.txt"
    )


def test_every_command_of_the_laboratory_is_on_some_page() -> None:
    assert len(FOUND) >= 60
    assert {line.split()[1] for line in FOUND if line.startswith("equirelax ")} == set(COMMANDS)
    names = {line.split()[1] for page in [*PAGES, *NOTEBOOKS] for line in named(page)} - {"COMMAND", "-m"}
    assert names <= set(COMMANDS)


def obeyed(line: str) -> int:
    """Run a command of the laboratory in this process; returns its exit code."""
    try:
        return main(shlex.split(line)[1:])
    except SystemExit as end:  # of --help
        return int(end.code or 0)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder: empty, with no data, but for the study that the page on studies shows."""
    study = next(
        m["text"] for m in FENCED.finditer((ROOT / "docs" / "how_to" / "studies.md").read_text("utf-8"))
    )
    (tmp_path / "FILE.yaml").write_text(study)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EQUIRELAX_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, marks=pytest.mark.slow if " data make " in line else ()) for line in LISTED["run"]],
)
@pytest.mark.usefixtures("empty")
def test_it_runs(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert obeyed(line) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
@pytest.mark.usefixtures("runs_here")
def test_they_run_after_a_training(
    empty: Path,
    tiny_root: Path,
    tiny_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from equirelax_lab.training.run import train

    monkeypatch.setenv("EQUIRELAX_DATA", str(tiny_root))
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    for folder in ("ace", "nbody/segnn-ace-seed0", "nbody/segnn-strict-seed0"):
        train(tiny_config("strict" if "strict" in folder else "ace"), empty / "runs" / folder, tiny_root)
    small = "--dataset.train 48 --dataset.val 24 --dataset.test 24 --network.layers 1 --network.hidden 16"
    assert (
        obeyed(f"equirelax compare nbody --methods strict,ace --seeds 1 --epochs 1 {small} --batch_size 20")
        == 0
    )
    for line in LISTED["after"]:
        code = obeyed(line)
        assert code == 0 or (line.startswith("equirelax audit") and code == 1), (
            f"{line}: {capsys.readouterr().err}"
        )
    assert [Path(address).name for address in opened] == ["report.html"]
    for name in ("strict.safetensors", "ace.html", "pictures", "lab/results/mine/summary.md"):
        assert (empty / name).exists(), name


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("line", LISTED["parsed"], ids=str)
def test_the_command_line_takes_it(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Parsed):
        pytest.fail(f"exit code {obeyed(line)}: {capsys.readouterr().err}")


def test_make_knows_the_targets() -> None:
    """Read, not run: `make -n` runs what recipes give to another make."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in LISTED["make"]:
        target = shlex.split(line)[-1]
        assert re.search(rf"^{re.escape(target)}:", text, flags=re.MULTILINE), line


def test_what_pip_is_to_install_is_there() -> None:
    """Folders with a pyproject.toml, their extras, and files of requirements; of indexes only exact versions."""
    for line in LISTED["pip"]:
        program, action, *words = shlex.split(line)
        assert (program, action) == ("pip", "install")
        for word in words:
            folder, _, extras = word.partition("[")
            if (ROOT / folder / "pyproject.toml").exists():
                project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text("utf-8"))["project"]
                assert set(filter(None, extras.rstrip("]").split(","))) <= set(
                    project["optional-dependencies"]
                )
            elif word.startswith("requirements"):
                assert (ROOT / word).exists()
            else:
                assert word in ("-r", "--no-deps", "nequip", "jupyter") or re.fullmatch(
                    r"\w+==[\d.]+", word
                ), word


def test_tests_of_the_other_programs_are_there() -> None:
    for line, test in TESTED.items():
        text = (ROOT / test).read_text(encoding="utf-8")
        assert any(
            word in text for word in {Path(word).stem for word in shlex.split(line)} - {"python", "-m"}
        ), line


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
