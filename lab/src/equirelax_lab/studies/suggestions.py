"""The memory of a search, and where its suggestions come from: Optuna (Akiba et al., KDD 2019), kept in one file.

Suggestions are those of its tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), with a seed of its own for
every trial: what trial n is given depends on what is known of those before it alone, not on whether the search was
interrupted meanwhile.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from equirelax.errors import ConfigError
from equirelax_lab.studies.space import Axis, Search
from equirelax_lab.training.folder import differences

HISTORY = "search.journal"
NAME = "search"
Status = Literal["running", "finished", "pruned", "failed"]


@dataclass(frozen=True)
class Record:
    """A trial as it is remembered.

    Attributes:
        number: From 0 on. values: Its settings by the keys of the axes. status: How it ended, if it did.
        value: What was optimised; of a pruned trial the last measured. epochs: Epochs after which it was measured last.
        reason: Why it failed, or "".
    """

    number: int
    values: dict[str, Any]
    status: Status
    value: float | None
    epochs: int
    reason: str


class _Held(JournalFileOpenLock):
    """The folder is held already: no lock file that would outlive a killed search."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return


class Suggestions:
    """Trials of one search: what to try, how it went.

    Args:
        folder: Of the search, which this process holds. search: What is searched for.
        maximise: Whether larger values are better.

    Raises:
        ConfigError: the folder holds another search, or its memory is damaged.
    """

    def __init__(self, folder: Path, search: Search, maximise: bool) -> None:
        self.search = search
        path = folder / HISTORY
        _end_with_a_whole_line(path)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._storage = optuna.storages.JournalStorage(
                JournalFileBackend(str(path), lock_obj=_Held(str(path)))
            )
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=NAME,
                direction="maximize" if maximise else "minimize",
                pruner=_pruner(search),
                load_if_exists=True,
            )
            stored = self._study.user_attrs.get("definition")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ConfigError(
                f"{path} is damaged: {error}. Remove {folder} to search anew, or name another folder with --out."
            ) from error
        if stored is None:
            self._study.set_user_attr("definition", dict(search.definition))
        elif differing := differences(stored, dict(search.definition)):
            raise ConfigError(
                f"{folder} holds another search: {'; '.join(differing)}. Name another folder with --out, or remove it."
            )
        self._trials: dict[int, optuna.Trial] = {}

    def count(self) -> int:
        """Trials that were begun."""
        return len(self._study.get_trials(deepcopy=False))

    def unfinished(self) -> list[int]:
        """Trials that an earlier command began and did not end."""
        return [t.number for t in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    def begin(self) -> int:
        """A new trial: its number."""
        self._draw_as(self.count())
        trial = self._study.ask()
        self._trials[trial.number] = trial
        return trial.number

    def values(self, number: int) -> dict[str, Any]:
        """The settings of a trial, by the keys of the axes."""
        trial = self._trial(number)
        self._draw_as(number)
        return {axis.key: _suggested(trial, axis) for axis in self.search.axes}

    def _draw_as(self, number: int) -> None:
        """Draw with the seed of a trial, and not of the command: an interrupted search suggests what it would have."""
        seed = (self.search.seed * 1_000_003 + number) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=self.search.startup, seed=seed, constant_liar=True
            )

    def report(self, number: int, measured: dict[int, float]) -> bool:
        """Note what was measured after some epochs (epoch, from 0 on -> value).

        Returns:
            Whether the trial is behind and should end.
        """
        trial = self._trial(number)
        known = self._frozen(number).intermediate_values
        for epoch, value in sorted(measured.items()):
            if epoch not in known:
                trial.report(value, epoch)
            if epoch == max(self._frozen(number).intermediate_values) and trial.should_prune():
                return True
        return False

    def end(self, number: int, status: Status, value: float | None = None, reason: str = "") -> None:
        """Note how a trial ended. One whose settings do not work teaches as much as one that is behind: it counts as
        pruned, for the suggestions; one that broke teaches nothing.
        """
        if reason:
            self._trial(number).set_user_attr("reason", reason)
        if status == "finished":
            self._study.tell(number, value)
        else:
            self._study.tell(number, state=TrialState.PRUNED if status == "pruned" else TrialState.FAIL)

    def records(self) -> list[Record]:
        """All trials by number."""
        return [_record(trial) for trial in self._study.get_trials(deepcopy=False)]

    def _trial(self, number: int) -> optuna.Trial:
        if number not in self._trials:
            study = self._storage.get_study_id_from_name(NAME)
            identity = self._storage.get_trial_id_from_study_id_trial_number(study, number)
            self._trials[number] = optuna.Trial(self._study, identity)
        return self._trials[number]

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]


def _record(trial: FrozenTrial) -> Record:
    names: dict[TrialState, Status] = {
        TrialState.RUNNING: "running",
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "pruned",
    }
    reason = str(trial.user_attrs.get("reason", ""))
    status = "failed" if reason else names.get(trial.state, "failed")
    epochs = max(trial.intermediate_values, default=-1) + 1
    return Record(trial.number, dict(trial.params), status, trial.value, epochs, reason)


def _suggested(trial: optuna.Trial, axis: Axis) -> Any:
    if axis.kind == "choice":
        return trial.suggest_categorical(axis.key, axis.values)
    least, most = axis.values
    if axis.kind == "integer":
        return trial.suggest_int(axis.key, least, most)
    return trial.suggest_float(axis.key, least, most, log=axis.kind == "log")


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    if search.pruner == "none":
        return optuna.pruners.NopPruner()
    # epochs before the warm-up's end have numbers below it
    return optuna.pruners.MedianPruner(n_startup_trials=search.startup, n_warmup_steps=search.warmup)


def _end_with_a_whole_line(path: Path) -> None:
    """Take away what a killed search had written of a line: what comes after it would not be read."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
