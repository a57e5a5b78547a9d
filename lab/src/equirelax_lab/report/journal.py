"""What a study's journal says of the runs in its folder: which failed for good and why, which go on, which wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equirelax_lab.studies.state import JOURNAL, read_journal

UP = 3
"""Folders to look in: a run's own, that of its grid, that of the study."""
STATES = ("finished", "running", "waiting", "failed")


@dataclass(frozen=True)
class Journal:
    """A study's journal.

    Attributes:
        folder: The study's, resolved. title: In words. small: Whether it is the small variant.
        runs: Path of a run, relative to the folder -> status and reason.
    """

    folder: Path
    title: str
    small: bool
    runs: Mapping[str, Mapping[str, Any]]

    def inside(self, folder: Path) -> dict[str, Mapping[str, Any]]:
        """The runs in `folder`, by their folders' names."""
        here = folder.resolve()
        return {
            Path(name).name: run for name, run in self.runs.items() if (self.folder / name).parent == here
        }

    def state(self, folder: Path) -> tuple[str, str]:
        """Status and reason of the run in `folder`; empty where the journal does not know it."""
        try:
            name = str(folder.resolve().relative_to(self.folder))
        except ValueError:
            return "", ""
        run = self.runs.get(name, {})
        return str(run.get("status", "")), str(run.get("reason", ""))


def journal_of(folder: Path) -> Journal | None:
    """The journal in `folder` or up to two folders above it; None where there is none.

    Raises:
        ConfigError: it is damaged.
    """
    here = folder.resolve()
    for place in (here, *here.parents)[:UP]:
        if (place / JOURNAL).exists():
            content = read_journal(place)
            runs = {str(name): run for name, run in content["runs"].items() if isinstance(run, Mapping)}
            return Journal(place, str(content.get("title", place.name)), bool(content.get("small")), runs)
    return None


def counted(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """State -> how many runs are in it."""
    return {state: sum(run.get("status") == state for run in runs.values()) for state in STATES}
