"""How far the runs of a study are, kept in study.json beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from equirelax.errors import ConfigError
from equirelax.files import write_text
from equirelax_lab.studies.spec import Study
from equirelax_lab.studies.trials import Trial
from equirelax_lab.training.folder import METRICS, RESULT, changed_settings, read_result, read_table

JOURNAL = "study.json"
Status = Literal["waiting", "running", "finished", "failed"]


@dataclass(eq=False)
class State:
    """One run, now.

    Attributes:
        trial: Which run. folder: Where it is.
        status: What it does. attempts: How often it was started by the present command. reason: Why it failed last.
        where: The machine that it ran on last; empty for this one.
    """

    trial: Trial
    folder: Path
    status: Status = "waiting"
    attempts: int = 0
    reason: str = ""
    where: str = ""

    def progress(self) -> dict[str, str]:
        """The last row of metrics.csv; empty before the first epoch's end."""
        try:
            return read_table(self.folder / METRICS)[-1]
        except (OSError, IndexError, ValueError):
            return {}

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        try:
            return int(self.progress()["epoch"]) + 1
        except (KeyError, ValueError):
            return 0


def states(found: Sequence[Trial], out: Path) -> list[State]:
    """What stands in the study's folder: finished runs, and those that cannot be gone on with.

    Raises:
        ConfigError: a run's settings are no longer the study's, which would compare what does not belong together.
    """
    return [_state(trial, out / trial.folder) for trial in found]


def _state(trial: Trial, folder: Path) -> State:
    state = State(trial, folder)
    if not (folder / "config.yaml").exists():
        return state
    try:
        differing = changed_settings(trial.config, folder)
    except ConfigError as error:  # a damaged file is this run's trouble alone
        state.status, state.reason = "failed", str(error)
        return state
    if differing:
        raise ConfigError(
            f"{folder} holds a run with other settings: {'; '.join(differing)}. Name another folder with --out, or "
            "remove it."
        )
    if (folder / RESULT).exists():
        try:
            read_result(folder / RESULT)
            state.status = "finished"
        except ConfigError as error:
            state.status, state.reason = "failed", str(error)
    return state


def write_journal(out: Path, study: Study, all_: Sequence[State]) -> None:
    """Write study.json, whole or not at all."""
    runs = {
        str(s.trial.folder): {"status": s.status, "attempts": s.attempts, "reason": s.reason}
        | ({"where": s.where} if s.where else {})
        for s in all_
    }
    content = {"name": study.name, "title": study.title, "small": study.small, "runs": runs}
    write_text(out / JOURNAL, json.dumps(content, indent=2) + "\n")


def read_journal(out: Path) -> dict[str, Any]:
    """What study.json says. Raises `ConfigError` where there is none, or it cannot be read."""
    path = out / JOURNAL
    if not path.exists():
        raise ConfigError(f"{out} is no study's folder: there is no {JOURNAL} in it.")
    content = read_result(path)
    runs = content.get("runs") if isinstance(content, dict) else None
    keys = {"status", "attempts", "reason"}
    if not isinstance(runs, dict) or not all(isinstance(r, dict) and keys <= r.keys() for r in runs.values()):
        raise ConfigError(f"{path} is not what a study writes. Remove it and run the study again.")
    return content
