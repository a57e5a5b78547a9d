"""The commands that reproduce runs, tables and pictures."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.rows import by_label
from equirelax_lab.report.runs import Study
from equirelax_lab.tasks.command_line import train_command
from equirelax_lab.tasks.registry import config_from_dict


def place(path: Path) -> str:
    """A path as a reader of the results may type it: from the root of the repository that holds it, or from the current folder.

    Outside both it is only the name, because results are sent to others, whose folders differ from ours.
    """
    full = path.resolve()
    repository = next((folder for folder in full.parents if (folder / ".git").exists()), None)
    for root in (repository, Path.cwd()):
        if root is not None and full.is_relative_to(root):
            return full.relative_to(root).as_posix()
    return full.name


def command(*words: str) -> str:
    """A command of the laboratory as it is typed."""
    return shlex.join(["equirelax", *words])


def summarise(folder: Path) -> str:
    """The command that writes the tables and pictures of a comparison again."""
    return command("summarise", place(folder))


def study(about: Study | None) -> str | None:
    """The command that runs a study again; None if the runs belong to no named study."""
    if about is None or not about.name:
        return None
    return command("study", "run", about.name, *(["--small"] if about.small else []))


def train(result: Mapping[str, Any]) -> str:
    """The command that trains a run again: its recipe, and every setting that differs from the recipe.

    Args:
        result: Content of its result.json.
    """
    return train_command(config_from_dict(result["config"]))


def training(results: Sequence[Mapping[str, Any]]) -> Numbers:
    """A row for every row of the comparison: its seeds, and the command that repeats the run of the first seed."""
    rows = tuple(
        (label, ", ".join(str(run["seed"]) for run in runs), train(runs[0]))
        for label, runs in by_label(results).items()
    )
    return Numbers("How the runs are trained again", ("method", "seeds", "command, for the first seed"), rows)
