"""The trials of a search, chosen by Optuna (Akiba et al., KDD 2019) and recorded in one file.

Suggestions come from Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), with a separate seed for
every trial: the settings of trial n depend only on what is known about the earlier trials, not on whether the search was
interrupted in between. The objective is the best validation value of a run. The test set is not used.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from equirelax.errors import ConfigError
from equirelax.files import write_text
from equirelax_lab.studies.keys import merged
from equirelax_lab.studies.scheduler import Source
from equirelax_lab.studies.search import Axis, Search, figures
from equirelax_lab.studies.trials import Status, Trial
from equirelax_lab.tasks.command_line import train_command
from equirelax_lab.tasks.methods import is_strict
from equirelax_lab.tasks.task import Metric
from equirelax_lab.training.folder import METRICS, differences, read_table

HISTORY, OUTCOME, BEST = "search.journal", "search.json", "best.yaml"
"""Optuna's memory, all trials for readers, and a study of the best settings."""
NAME = "search"
GIVE_UP = 3
"""Number of trials that fail in a row, after which something other than their settings is likely to be wrong."""
SEEDS = 3
"""Seeds of the final runs in best.yaml."""
SHARED, OWN = ("dataset", "network"), ("strength", "residual")
"""Sections of settings that the strict runs in best.yaml take over if they were searched for, and sections that strict runs do
not have."""


class _Held(JournalFileOpenLock):
    """No lock: the process already holds the whole folder, and a lock of Optuna's would outlive a killed search."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return


class Suggestions(Source):
    """The trials of a search, which Optuna chooses.

    Args:
        search: The search.
        metric: The metric of its benchmark.
    """

    def __init__(self, search: Search, metric: Metric) -> None:
        super().__init__([])
        self.search, self.metric = search, metric
        self._asked: dict[int, optuna.Trial] = {}
        self._failures = 0

    def open(self, out: Path) -> None:
        """Read the state from the search's folder.

        Raises:
            ConfigError: The folder holds another search, or its file is damaged.
        """
        self.out, path = out, out / HISTORY
        _end_with_a_whole_line(path)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        definition = self.search.definition
        try:
            backend = JournalFileBackend(str(path), lock_obj=_Held(str(path)))
            self._storage = optuna.storages.JournalStorage(backend)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=NAME,
                direction="maximize" if self.metric.higher_is_better else "minimize",
                pruner=_pruner(self.search),
                load_if_exists=True,
            )
            stored = self._study.user_attrs.get("definition")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ConfigError(
                f"{path} is damaged: {error}. Remove {out} to search anew, or name another folder with --out."
            ) from error
        if stored is None:
            self._study.set_user_attr("definition", definition)
        elif differing := differences(stored, definition):
            raise ConfigError(
                f"{out} holds another search: {'; '.join(differing)}. Name another folder with --out, or remove it."
            )
        for entry in self.entries():
            if entry["status"] == "running":
                self._add(entry["number"], self._reopened(entry["number"]))
            else:
                self._append(entry["number"], entry["values"], entry["status"], entry["reason"])
        self.write()

    def next(self) -> Trial | None:
        """The next trial, with the settings that Optuna suggests; None if there are enough trials."""
        number = len(self.trials)
        if number >= self.search.trials:
            return None
        self._draw_as(number)
        trial = self._add(number, self._study.ask())
        self.write()
        return trial

    def watch(self, trial: Trial) -> bool:
        """Record what a run has measured; returns whether it is behind the others and should end."""
        number = self.trials.index(trial)
        known = self._frozen()[number].intermediate_values
        for epoch, value in sorted(validations(trial.folder, self.search.column).items()):
            if epoch not in known:
                self._asked[number].report(value, epoch)
            latest = max(self._frozen()[number].intermediate_values)
            if epoch == latest and self._asked[number].should_prune():
                return True
        return False

    def ended(self, trial: Trial, broken: bool) -> bool:
        """Record how a trial ended; returns whether too many in a row have failed."""
        number, value = self.trials.index(trial), None
        if trial.status == "finished":
            value = self._best_value(trial)
            if value is None:
                trial.status, trial.reason = "failed", "no validation had a finite value"
        if trial.reason:
            self._asked[number].set_user_attr("reason", trial.reason)
        if trial.status == "finished":
            self._study.tell(number, value)
        else:
            # The suggestions learn from settings that do not work as from settings that are behind, but not from a broken run.
            self._study.tell(number, state=TrialState.FAIL if broken else TrialState.PRUNED)
        self._failures = self._failures + 1 if trial.reason else 0
        best = self.best()
        so_far = "" if best is None else f"; best so far: trial {best['number']}, {figures(best['value'])}"
        trial.note = f"{self._described(self.entries()[number])}{so_far}"
        self.write()
        if self._failures == GIVE_UP:
            print(
                f"{GIVE_UP} trials have failed in a row: no more are begun. The same command goes on.",
                flush=True,
            )
        return self._failures >= GIVE_UP

    @property
    def succeeded(self) -> bool:
        """Whether a trial has finished, and the search was not given up."""
        return self.best() is not None and self._failures < GIVE_UP

    def entries(self) -> list[dict[str, Any]]:
        """All trials by number, as in search.json: `values` are the settings by the keys of the axes, `value` is the value of
        the objective (for a pruned trial the last measured one), and `epochs` the epochs after which it was last measured.
        """
        return [_entry(frozen) for frozen in self._frozen()]

    def best(self) -> dict[str, Any] | None:
        """The entry of the best finished trial."""
        best: dict[str, Any] | None = None
        for entry in self.entries():
            if entry["status"] == "finished":
                than = self.metric.worst if best is None else best["value"]
                best = entry if self.metric.better(entry["value"], than) else best
        return best

    def write(self) -> None:
        """Write search.json, and best.yaml if a trial has finished."""
        search, entries, best = self.search, self.entries(), self.best()
        content = {
            "title": search.title,
            "search": search.definition,
            "small": search.small,
            "metric": self.metric.to_dict(),
            "optimised": search.column,
            "trials": entries,
            "best": best,
            "command": None if best is None else train_command(search.run(best["values"])),
            "left": max(0, search.trials - sum(entry["status"] != "running" for entry in entries)),
        }
        write_text(self.out / OUTCOME, json.dumps(content, indent=2) + "\n")
        if best is not None:
            write_text(self.out / BEST, final_study(search, best["values"], len(entries)))

    def _add(self, number: int, asked: optuna.Trial) -> Trial:
        """Append a trial to run, with the settings that it was given before, or is given now."""
        self._asked[number] = asked
        self._draw_as(number)
        return self._append(number, {axis.key: _suggested(asked, axis) for axis in self.search.axes})

    def _append(
        self, number: int, values: dict[str, Any], status: Status = "waiting", reason: str = ""
    ) -> Trial:
        name = label(number)
        trial = Trial(name, "", name, self.search.run(values), self.out / name, status, reason=reason)
        self.trials.append(trial)
        return trial

    def _draw_as(self, number: int) -> None:
        """Draw with the seed of a trial, not of the command: an interrupted search makes the same suggestions."""
        seed = (self.search.seed * 1_000_003 + number) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=self.search.startup, seed=seed, constant_liar=True
            )

    def _reopened(self, number: int) -> optuna.Trial:
        study = self._storage.get_study_id_from_name(NAME)
        identity = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        return optuna.Trial(self._study, identity)

    def _frozen(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _best_value(self, trial: Trial) -> float | None:
        best = None
        for value in validations(trial.folder, self.search.column).values():
            if self.metric.better(value, self.metric.worst if best is None else best):
                best = value
        return best

    def _described(self, entry: dict[str, Any]) -> str:
        """The result of a trial that has ended, and its settings."""
        value = figures(entry["value"])
        if entry["status"] == "pruned":
            value += f", ended after epoch {entry['epochs']} of {self.search.config.training.epochs}"
        values = ", ".join(f"{key} {figures(own)}" for key, own in entry["values"].items())
        return f"{value} ({values})"


def label(number: int) -> str:
    """The name of a trial and of its folder."""
    return f"trial-{number:04d}"


def validations(folder: Path, column: str) -> dict[int, float]:
    """The finite validation values of a run by epoch, counted from 0; none before the first validation."""
    try:
        rows = read_table(folder / METRICS)
        found = {int(row["epoch"]): float(row[column]) for row in rows if row.get(column)}
    except (OSError, KeyError, ValueError):
        return {}
    return {epoch: value for epoch, value in found.items() if math.isfinite(value)}


def final_study(search: Search, values: dict[str, Any], trials: int) -> str:
    """A study of the best settings over several seeds, beside strict runs on the same data with the same network."""
    config, changes = search.config, search.changes(values)
    settings = merged(search.settings, {key: value for key, value in changes.items() if key in SHARED})
    # The strict runs have no strength, and take nothing else of what was searched for.
    shared = {key: value for key, value in settings.items() if key not in OWN}
    own = {key: value for key, value in settings.items() if key in OWN}
    own = merged(own, {key: value for key, value in changes.items() if key not in SHARED})
    content = {
        "title": f"{search.title}: the best of {trials} trials",
        "benchmark": config.benchmark,
        "models": [config.model],
        "methods": [config.method] if is_strict(config.method) else ["strict", config.method],
        "seeds": [
            config.seed + 1 + k for k in range(SEEDS)
        ],  # seeds other than the one that the search was tuned on
        "recipe": config.recipe,
        "settings": shared,
        "per_method": {config.method: own},
    }
    return yaml.safe_dump(content, sort_keys=False)


def _entry(trial: FrozenTrial) -> dict[str, Any]:
    names = {TrialState.RUNNING: "running", TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}
    reason = str(trial.user_attrs.get("reason", ""))
    return {
        "number": trial.number,
        "values": dict(trial.params),
        "status": "failed" if reason else names.get(trial.state, "failed"),
        "value": trial.value,
        "epochs": max(trial.intermediate_values, default=-1) + 1,
        "reason": reason,
        "folder": label(trial.number),
    }


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
    # Optuna's steps are our epochs, counted from 0: those before the end of the warm-up have smaller numbers.
    return optuna.pruners.MedianPruner(n_startup_trials=search.startup, n_warmup_steps=search.warmup)


def _end_with_a_whole_line(path: Path) -> None:
    """Cut off an incomplete last line of a killed search: Optuna would not read what comes after it."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
