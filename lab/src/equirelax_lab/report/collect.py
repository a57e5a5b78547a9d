"""The runs that a report is of: found under folders, read, checked, and put together with those they compare with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError, EquirelaxError
from equirelax_lab.report.journal import Journal, journal_of
from equirelax_lab.report.picture import Table
from equirelax_lab.report.swept import swept_setting
from equirelax_lab.report.variants import BASELINE, labels, settings
from equirelax_lab.tasks.registry import build_task, config_from_dict, task_class
from equirelax_lab.tasks.settings import RunConfig, read_yaml
from equirelax_lab.training.dynamics import read_metrics
from equirelax_lab.training.folder import CONFIG, METRICS, RESULT, check_result, read_run_result


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: Where it stands; None where a comparison's summary holds its result, and its folder is gone.
        result: Content of result.json; of an unfinished run only benchmark, model, method, seed, config and metric.
        rows: Of metrics.csv; empty where there is none.
        finished: Whether it has a result.
        lost: Why it ended for good without one, as its study's journal says; empty for all others.
    """

    folder: Path | None
    result: Mapping[str, Any]
    rows: Table
    finished: bool
    lost: str = ""

    @property
    def name(self) -> str:
        """What it is called in lists."""
        if self.folder is not None:
            return self.folder.name
        return f"{self.result['method']}, seed {self.result['seed']} (only in the summary)"


@dataclass(frozen=True)
class Chapter:
    """Runs of one benchmark and metric, which one table compares.

    Attributes:
        name: Of the folder that holds them.
        runs: In the order in which they are shown.
        labels: One for every run: its method, and what its settings are where runs of that method differ.
        problems: What was left out, in words.
        study: The journal of the study that the runs are of; None where they are of none.
    """

    name: str
    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    problems: tuple[str, ...] = ()
    study: Journal | None = None

    @property
    def finished(self) -> list[Run]:
        """The runs that have a result."""
        return [run for run in self.runs if run.finished]

    @property
    def folder(self) -> Path | None:
        """That holds the runs; None where they were named one by one, or are gone."""
        parents = {run.folder.parent for run in self.runs if run.folder is not None}
        return parents.pop() if len(parents) == 1 else None

    @property
    def lost(self) -> list[Run]:
        """The runs that ended for good without a result."""
        return [run for run in self.runs if run.lost]

    @property
    def metric(self) -> Mapping[str, Any]:
        """The headline metric, as result files hold it."""
        metric: Mapping[str, Any] = self.runs[0].result["metric"]
        return metric

    @property
    def title(self) -> str:
        """The benchmark in words."""
        return task_class(self.runs[0].result["benchmark"]).title

    def by_label(self) -> dict[str, list[Run]]:
        """Label -> its runs (seeds)."""
        found: dict[str, list[Run]] = {}
        for label, run in zip(self.labels, self.runs, strict=True):
            found.setdefault(label, []).append(run)
        return found

    def in_curves(self) -> dict[str, list[Run]]:
        """Label -> the runs that its curves are means of: the finished ones; where none is, all of them.

        A run that has only begun would cut the mean of all seeds to the epochs that it has.
        """
        return {
            label: [run for run in several if run.finished] or several
            for label, several in self.by_label().items()
        }


def gather(paths: Sequence[Path]) -> list[Chapter]:
    """Chapters for all runs in `paths`: folders of runs, comparisons, or folders that hold such, at any depth.

    Runs that stand in one folder are one chapter; so are runs that are named one by one. A run that cannot be read is
    left out and listed among the problems of its chapter.

    Raises:
        ConfigError: a path is missing, or there is no run that can be read.
    """
    groups: dict[Path | None, list[Path]] = {}
    for path in paths:
        given = path.parent if path.is_file() else path
        if not given.is_dir():
            raise ConfigError(f"{path} is not there: name a folder of a run or of a comparison.")
        found = run_folders(given)
        if not found:
            raise ConfigError(
                f"{path} holds no run: neither it nor a folder in it has {CONFIG} or {RESULT}. Name the folder that "
                "`equirelax train` or `equirelax compare` wrote."
            )
        for folder in found:
            several = groups.setdefault(None if folder == given else folder.parent, [])
            if folder.resolve() not in [one.resolve() for one in several]:
                several.append(folder)
    chapters = [chapter for parent, folders in groups.items() for chapter in _chapters(parent, folders)]
    if not any(chapter.runs for chapter in chapters):
        raise ConfigError(" ".join(words for chapter in chapters for words in chapter.problems))
    return [chapter for chapter in chapters if chapter.runs]


def run_folders(folder: Path) -> list[Path]:
    """`folder` itself if it is a run's, else all runs in it, by name."""
    if (folder / CONFIG).exists() or (folder / RESULT).exists():
        return [folder]
    return sorted({file.parent for name in (CONFIG, RESULT) for file in folder.rglob(name)})


def _chapters(parent: Path | None, folders: Sequence[Path]) -> list[Chapter]:
    runs: list[Run] = []
    problems: list[str] = []
    study = _journal(folders[0] if parent is None else parent, problems)
    for folder in folders:
        try:
            run = read_run(folder)
        except EquirelaxError as error:
            problems.append(f"Left out: {error}")
            continue
        status, reason = ("", "") if study is None else study.state(folder)
        lost = status == "failed" and not run.finished
        runs.append(dataclasses.replace(run, lost=reason or "no reason is known") if lost else run)
    if parent is not None and study is not None:
        known = {folder.name for folder in folders}
        problems += [
            f"{name} failed before it could begin: {one.get('reason')}"
            for name, one in study.inside(parent).items()
            if one.get("status") == "failed" and name not in known
        ]
    if parent is not None:
        runs += _only_in_summary(parent, [run.result for run in runs])
    name = "runs" if parent is None else parent.resolve().name
    kinds = dict.fromkeys((run.result["benchmark"], run.result["metric"]["name"]) for run in runs)
    chapters: list[Chapter] = []
    for kind in kinds:
        own = [r for r in runs if (r.result["benchmark"], r.result["metric"]["name"]) == kind]
        chapters.append(_chapter(name, own, problems if not chapters else (), study))
    return chapters or [Chapter(name, (), (), tuple(problems))]


def _journal(folder: Path, problems: list[str]) -> Journal | None:
    """The journal of the study that `folder` is in; a damaged one is a problem, not the end of the report."""
    try:
        return journal_of(folder)
    except ConfigError as error:
        problems.append(f"Left out: {error}")
        return None


def _chapter(name: str, runs: Sequence[Run], problems: Iterable[str], study: Journal | None) -> Chapter:
    """In the order: strict first, then by method as first met, a swept number growing, seeds growing."""
    key = swept_setting([run.result for run in runs])
    methods = list(dict.fromkeys(run.result["method"] for run in runs))
    ordered = sorted(
        runs,
        key=lambda run: (
            run.result["method"] != BASELINE,
            methods.index(run.result["method"]),
            run.result["model"],
            float(settings(run.result).get(key, 0)) if key else 0.0,
            run.result["seed"],
        ),
    )
    named = tuple(labels([run.result for run in ordered]))
    return Chapter(name, tuple(ordered), named, tuple(problems), study)


def read_run(folder: Path) -> Run:
    """The run in `folder`.

    Raises:
        ConfigError: a file of it cannot be read, or lacks something.
    """
    finished = (folder / RESULT).exists()
    if finished:
        result = read_run_result(folder / RESULT)
        rows = read_metrics(folder / METRICS, result["epochs"]) if (folder / METRICS).exists() else []
        return Run(folder, result, rows, True)
    stored = read_yaml(folder / CONFIG)
    try:
        config = config_from_dict(stored)
    except EquirelaxError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from error
    result = {**of_config(config), "metric": build_task(config).metric.to_dict()}
    return Run(folder, result, read_metrics(folder / METRICS) if (folder / METRICS).exists() else [], False)


def of_config(config: RunConfig) -> dict[str, Any]:
    """What is known of a run without a result: benchmark, model, method, seed and config, as a result holds them."""
    names = ("benchmark", "model", "method", "seed")
    return {**{name: getattr(config, name) for name in names}, "config": config.to_dict()}


def _only_in_summary(parent: Path, known: Sequence[Mapping[str, Any]]) -> list[Run]:
    """Runs that the comparison's summary.json holds, and that have no folder any more."""
    path = parent / "summary.json"
    if not path.exists():
        return []
    try:
        listed = json.loads(path.read_text(encoding="utf-8")).get("runs", [])
    except (OSError, ValueError, AttributeError):
        return []  # it is written anew by every comparison; the runs themselves are what counts
    have = [result["config"] for result in known]
    found = []
    for result in listed:
        try:
            check_result(result, path)
        except EquirelaxError:
            continue
        if result["config"] not in have:
            found.append(Run(None, result, (), True))
    return found
