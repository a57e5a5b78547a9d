"""The command that a page gives for a run trains that run again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from equirelax_lab.cli import options
from equirelax_lab.cli.train import add_names
from equirelax_lab.report import again
from equirelax_lab.report.archive import read_archive
from equirelax_lab.report.rows import by_label
from equirelax_lab.report.runs import Study
from equirelax_lab.tasks.registry import config_from_dict, defaults
from equirelax_lab.tasks.settings import EARLIER, RunConfig

RESULTS = Path(__file__).parents[2] / "results"


def parsed(command: str) -> RunConfig:
    """The settings with which `equirelax train` would begin."""
    program, word, benchmark, *rest = shlex.split(command)
    assert (program, word) == ("equirelax", "train")
    config = options.starting_config(benchmark, rest)
    parser = options.parser(["train", benchmark], "")
    add_names(parser, config)
    options.add_settings(parser, config)
    return options.config_from(options.parse(parser, rest), config)


def alike(one: RunConfig, other: RunConfig) -> bool:
    """Whether two runs have the same settings, whatever recipe they began with."""
    named = ("recipe", "trained_as")
    return {**one.to_dict(), **dict.fromkeys(named)} == {**other.to_dict(), **dict.fromkeys(named)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "seed": 3,
            "learning_rate": 1e-5,
            "augment": True,
            "schedule": "milestones",
            "milestones": [0.5, 0.9],
        },
        {"residual": {"kind": "low-rank", "rank": 4}, "strength": {"dual_lr": 0.25}},
    ],
    ids=["none", "training", "method"],
)
def test_the_command_has_the_settings_of_the_run(settings: dict[str, Any]) -> None:
    config = defaults("nbody", "segnn", "ace", "small").updated(settings)
    assert parsed(again.train({"config": config.to_dict()})) == config


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(path.parent, marks=() if path.parent == RESULTS / "nbody" else pytest.mark.slow)
        for path in sorted(RESULTS.rglob("runs.json.gz"))
    ],
    ids=lambda folder: str(folder.relative_to(RESULTS)),
)
def test_committed_runs_can_be_trained_again(folder: Path) -> None:
    results = [entry.result for entry in read_archive(folder).entries if entry.result is not None]
    numbers = again.training(results)
    for (label, runs), row in zip(by_label(results).items(), numbers.rows, strict=True):
        wanted, found = config_from_dict(runs[0]["config"]), parsed(row[2])
        assert alike(wanted, found), label
        if wanted.recipe != EARLIER:
            assert (wanted.recipe, wanted.trained_as) == (found.recipe, found.trained_as)


def test_paths_are_those_of_the_repository_and_never_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "clone"
    (repository / ".git").mkdir(parents=True)
    assert again.summarise(repository / "lab" / "results") == "equirelax summarise lab/results"
    assert again.place(tmp_path / "elsewhere" / "runs") == "runs"
    monkeypatch.chdir(tmp_path)
    assert again.command("report", again.place(Path("two words"))) == "equirelax report 'two words'"


def test_a_study_with_a_name_has_a_command() -> None:
    assert again.study(Study("size", "", True, {})) == "equirelax study run size --small"
    assert again.study(Study("", "a comparison", False, {})) is None
    assert again.study(None) is None
