"""Comparisons summarised again from the results in their folders, as later versions of tables and sentences put it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from equirelax.errors import ConfigError
from equirelax_lab.report.collect import Run, gather
from equirelax_lab.report.comparison import SUMMARY, write_comparison
from equirelax_lab.training.folder import RESULT, read_result


def comparisons(paths: Sequence[Path]) -> list[Path]:
    """The folders of comparisons in `paths`, at any depth.

    Raises:
        ConfigError: there is none in one of them.
    """
    found: list[Path] = []
    for path in paths:
        here = [file.parent for file in sorted(path.rglob(SUMMARY)) if any(file.parent.glob(f"*/{RESULT}"))]
        if not here:
            raise ConfigError(
                f"{path} holds no comparison: no folder in it has {SUMMARY} and finished runs beside it. Name a folder "
                "that `equirelax compare` or `equirelax study run` wrote."
            )
        found += here
    return list(dict.fromkeys(found))


def summarise_again(folder: Path) -> str:
    """Write a comparison's summary, table and pictures anew; returns its table and sentence.

    Rows keep the order of the summary that is there; runs that it does not know follow those of their method.

    Raises:
        ConfigError: the summary or a result cannot be read, or the summary holds a run whose folder is gone or damaged.
    """
    known = [run["config"] for run in read_result(folder / SUMMARY).get("runs", [])]
    chapters = gather([folder])
    runs = [run for chapter in chapters for run in chapter.runs]
    if gone := [run.name for run in runs if run.folder is None]:
        why = " ".join(words for chapter in chapters for words in chapter.problems)
        raise ConfigError(
            f"{folder / SUMMARY} holds runs whose folders are gone or damaged: {', '.join(gone)}. {why}".rstrip()
        )
    last = {config["method"]: place for place, config in enumerate(known)}

    def place(run: Run) -> tuple[float, list[tuple[float, str]]]:
        config = run.result["config"]
        if config in known:
            return known.index(config), []
        return last.get(config["method"], len(known)) + 0.5, _natural(run.name)

    ordered = sorted(runs, key=place)
    return write_comparison(
        folder,
        [run.folder for run in ordered if run.finished and run.folder is not None],
        [run.result for run in ordered if run.lost],
    )


def _natural(name: str) -> list[tuple[float, str]]:
    """A key that sorts the numbers in names by size: train200 before train1000."""
    return [
        (float(part), "") if index % 2 else (0.0, part)
        for index, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", name))
    ]
