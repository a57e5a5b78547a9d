"""The runs of a report: read from their folders or from archives, checked, and grouped into chapters."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError, EquirelaxError
from equirelax_lab.report.archive import RUNS, Archive, Entry, Table, read_archive
from equirelax_lab.report.looks import METHODS
from equirelax_lab.report.rows import in_order, labels
from equirelax_lab.studies.trials import JOURNAL, read_journal
from equirelax_lab.tasks.registry import build_task, config_from_dict, task_class
from equirelax_lab.tasks.settings import RunConfig, read_yaml
from equirelax_lab.training.dynamics import read_metrics
from equirelax_lab.training.folder import CONFIG, METRICS, RESULT, check_result, read_run_result

STATUSES = ("finished", "running", "waiting", "failed", "pruned")
OLDER = "summary.json"
"""The file in which versions without archives kept the results of a comparison."""
LEFT_OUT = "Left out: "
"""The beginning of a problem's text if the problem keeps something out of tables and pages."""
UP = 3
"""Where a study's journal is searched for: in the run's folder, in that of its grid, in that of the study."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: Name of its folder.
        result: Content of result.json; for a run without one only benchmark, model, method, seed, config and metric.
        rows: Rows of metrics.csv; empty if there is none.
        status: One of `STATUSES`, or unfinished if no study records it.
        reason: Why it failed; empty otherwise.
    """

    name: str
    result: Mapping[str, Any]
    rows: Table
    status: str
    reason: str = ""

    @property
    def finished(self) -> bool:
        """Whether it has a result."""
        return self.status == "finished"

    @property
    def failed(self) -> bool:
        """Whether it ended without a result and will not be tried again."""
        return self.status == "failed"

    def series(self, column: str) -> dict[int, float]:
        """Epoch (from 1) -> value, for epochs where the column has a finite one."""
        return series(self.rows, column)

    @property
    def residuals(self) -> list[str]:
        """Keys of the residuals whose gamma was recorded, in the model's order."""
        return [
            key.removeprefix("gamma/")
            for key in (self.rows[0] if self.rows else ())
            if key.startswith("gamma/")
        ]

    def sizes(self) -> dict[str, dict[int, float]]:
        """Residual -> epoch -> abs(gamma) times the norm of its weight, at the epochs for which both were recorded."""
        return sizes(self.rows)


@dataclass(frozen=True)
class Study:
    """The study that runs belong to: name (empty for a comparison), title, whether it is the small variant, and the number of
    runs with each status.
    """

    name: str
    title: str
    small: bool
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Chapter:
    """Runs of one benchmark and metric, which one table compares.

    Attributes:
        name: Name of the folder that holds them.
        runs: The runs, in the order in which a page shows them.
        labels: One for every run: its method, and its settings if runs of that method differ in them.
        problems: What was left out and why, a sentence each.
        study: The study that the runs belong to; None if there is none.
    """

    name: str
    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    problems: tuple[str, ...] = ()
    study: Study | None = None

    @property
    def finished(self) -> list[Run]:
        """The runs that have a result."""
        return [run for run in self.runs if run.finished]

    @property
    def failed(self) -> list[Run]:
        """The runs that ended without a result and will not be tried again."""
        return [run for run in self.runs if run.failed]

    @property
    def metric(self) -> Mapping[str, Any]:
        """The headline metric, as in result files."""
        metric: Mapping[str, Any] = self.runs[0].result["metric"]
        return metric

    @property
    def title(self) -> str:
        """The benchmark in words."""
        return task_class(self.runs[0].result["benchmark"]).title

    @property
    def models(self) -> list[str]:
        """The models of the runs, each once."""
        return list(dict.fromkeys(run.result["model"] for run in self.runs))

    def by_label(self) -> dict[str, list[Run]]:
        """Label -> its runs (seeds)."""
        found: dict[str, list[Run]] = {}
        for label, run in zip(self.labels, self.runs, strict=True):
            found.setdefault(label, []).append(run)
        return found


def gather(paths: Sequence[Path]) -> list[Chapter]:
    """Chapters for all runs in `paths`: folders of runs, comparisons or studies, or folders that contain some, at any depth.

    Runs in one folder make one chapter; so do runs that are named one by one. A run that cannot be read is left out and listed
    among the problems of its chapter, or of the first chapter if its own has no run left.

    Raises:
        ConfigError: A path is missing, or no run in it can be read.
    """
    single: dict[Path, None] = {}
    groups: dict[Path, None] = {}
    for path in paths:
        given = path.parent if path.is_file() else path
        if is_run(given):
            single[given.resolve()] = None
            continue
        if not given.is_dir():
            raise ConfigError(f"{path} does not exist: name the folder of a run or of a comparison.")
        found = comparison_folders(given)
        if not found:
            raise ConfigError(
                f"{path} holds no run: neither it nor a folder in it has {CONFIG}, {RESULT} or {RUNS}. Name the folder that "
                "`equirelax train` or `equirelax compare` wrote."
            )
        groups |= dict.fromkeys(folder.resolve() for folder in found)
    chapters = [chapter for folder in groups for chapter in _chapters(folder.name, *read_folder(folder))]
    if single:
        runs, problems = _each(single)
        chapters += _chapters("runs", runs, problems, None)
    lost = tuple(words for chapter in chapters if not chapter.runs for words in chapter.problems)
    kept = [chapter for chapter in chapters if chapter.runs]
    if not kept:
        raise ConfigError(" ".join(first_few(lost)))
    return [replace(kept[0], problems=(*kept[0].problems, *lost)), *kept[1:]]


def first_few(problems: Sequence[str]) -> list[str]:
    """The first ten sentences, and how many follow: a folder with all kinds of files can have hundreds."""
    more = len(problems) - 10
    return [*problems[:10], f"{more} more like these."] if more > 0 else list(problems)


def is_run(folder: Path) -> bool:
    """Whether `folder` is the folder of a run, or names a run in the archive of its parent folder."""
    if (folder / CONFIG).exists() or (folder / RESULT).exists():
        return True
    return (folder.parent / RUNS).exists() and any(
        e.name == folder.name for e in read_archive(folder.parent).entries
    )


def comparison_folders(folder: Path) -> list[Path]:
    """All folders at or below `folder` that contain runs or an archive of runs."""
    runs = {file.parent.parent for name in (CONFIG, RESULT) for file in folder.rglob(name)}
    return sorted(runs | {file.parent for file in folder.rglob(RUNS)})


def read_folder(folder: Path) -> tuple[list[Run], list[str], Study | None]:
    """All runs of a comparison, in the order of its table if one was written; the problems found; the study.

    A run's folder takes precedence over its entry in the archive, unless it is damaged.
    """
    problems: list[str] = []
    archive = Archive(())
    if (folder / RUNS).exists():
        try:
            archive = read_archive(folder)
        except ConfigError as error:
            problems.append(f"{LEFT_OUT}{error}")
    journal = _journal(folder, problems)
    statuses = {} if journal is None else journal_inside(journal, folder)
    present = sorted({file.parent for name in (CONFIG, RESULT) for file in folder.glob(f"*/{name}")})
    own, found = {one.name for one in present}, []
    kept = {entry.name: entry for entry in archive.entries}
    every: list[Path | Entry] = [*present, *(entry for name, entry in kept.items() if name not in own)]
    for one in every:
        try:
            found.append(
                _of_folder(one, statuses.get(one.name)) if isinstance(one, Path) else _of_entry(one, folder)
            )
        except _NeverBegan as error:
            problems += [str(error)] if str(error) else []
        except EquirelaxError as error:
            if one.name in kept and isinstance(one, Path) and kept[one.name].result is not None:
                problems.append(f"{LEFT_OUT}{error} Its result in {RUNS} is taken.")
                found.append(_of_entry(kept[one.name], folder))
            else:
                problems.append(f"{LEFT_OUT}{error}")
    problems += [
        f"{name} failed before it could begin: {status.get('reason')}"
        for name, status in statuses.items()
        if status.get("status") == "failed" and name not in own
    ]
    found += _only_in_older(folder, found)
    older = [result["config"] for result in _listed_by_older(folder)]
    found = _in_order(found, [entry.name for entry in archive.entries], older)
    return found, problems, _study(journal, statuses, archive)


def read_run(folder: Path) -> Run:
    """The run in `folder`, or the one of that name in the archive of the parent folder.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    if (folder / CONFIG).exists() or (folder / RESULT).exists():
        return _of_folder(folder, None)
    if (folder.parent / RUNS).exists():
        for entry in read_archive(folder.parent).entries:
            if entry.name == folder.name:
                return _of_entry(entry, folder.parent)
    raise ConfigError(
        f"{folder} is no run: it has neither {CONFIG} nor {RESULT}, and no archive above it names it."
    )


class _NeverBegan(Exception):
    """An archive lists a run of which only the status is known."""


def _of_folder(folder: Path, status: Mapping[str, Any] | None) -> Run:
    if (folder / RESULT).exists():
        result = read_run_result(folder / RESULT)
        rows = read_metrics(folder / METRICS, result["epochs"]) if (folder / METRICS).exists() else []
        return Run(folder.name, result, rows, "finished")
    rows = read_metrics(folder / METRICS) if (folder / METRICS).exists() else []
    name = str((status or {}).get("status", "unfinished"))
    reason = str((status or {}).get("reason", "")) or "no reason is known"
    return _unfinished(folder.name, read_yaml(folder / CONFIG), rows, name, reason, folder / CONFIG)


def _of_entry(entry: Entry, folder: Path) -> Run:
    if entry.result is not None:
        check_result(entry.result, folder / RUNS)
        return Run(entry.name, entry.result, entry.rows, "finished")
    if entry.config is None:
        failed = entry.status == "failed"
        raise _NeverBegan(f"{entry.name} failed before it could begin: {entry.reason}" if failed else "")
    return _unfinished(entry.name, dict(entry.config), entry.rows, entry.status, entry.reason, folder / RUNS)


def _unfinished(name: str, stored: dict[str, Any], rows: Table, status: str, reason: str, where: Path) -> Run:
    try:
        config = config_from_dict(stored)
    except EquirelaxError as error:
        raise ConfigError(f"{where}: {error}") from error
    result = {**of_config(config), "config": stored, "metric": build_task(config).metric.to_dict()}
    return Run(name, result, rows, status, reason if status == "failed" else "")


def of_config(config: RunConfig) -> dict[str, Any]:
    """What is known about a run without a result: benchmark, model, method, seed and config, as in a result."""
    names = ("benchmark", "model", "method", "seed")
    return {**{name: getattr(config, name) for name in names}, "config": config.to_dict()}


def archived(runs: Iterable[Run], folder: Path) -> Archive:
    """`runs` as an archive, with the entries of their study's journal in `folder` for runs that never began. Reasons of failures
    name files below `folder` by relative paths.
    """
    place = f"{folder.resolve()}{os.sep}"
    journal = _journal(folder, [])
    statuses = {} if journal is None else journal_inside(journal, folder)
    entries = [
        Entry(run.name, run.status, rows=run.rows, result=run.result)
        if run.finished
        else Entry(
            run.name, run.status, run.reason.replace(place, ""), config=run.result["config"], rows=run.rows
        )
        for run in runs
    ]
    known = {entry.name for entry in entries}
    if journal is not None:
        entries += [
            Entry(
                name,
                str(one.get("status")),
                str(one.get("reason")).replace(place, "") if one.get("status") == "failed" else "",
            )
            for name, one in statuses.items()
            if name not in known
        ]
        study: Mapping[str, Any] | None = {key: journal[1].get(key) for key in ("name", "title", "small")}
    elif (folder / RUNS).exists():
        before = read_archive(folder)
        entries += [
            e for e in before.entries if e.name not in known and e.result is None and e.config is None
        ]
        study = before.study
    else:
        study = None
    return Archive(tuple(entries), study)


def journal_of(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """The study's folder and the content of its journal, searched for in `folder` and up to two folders above it.

    Raises:
        ConfigError: The journal is damaged.
    """
    here = folder.resolve()
    for place in (here, *here.parents)[:UP]:
        if (place / JOURNAL).exists():
            return place, read_journal(place)
    return None


def journal_inside(journal: tuple[Path, Mapping[str, Any]], folder: Path) -> dict[str, Mapping[str, Any]]:
    """The journal's runs directly in `folder`: name -> status and reason."""
    root, content = journal
    runs = {name: run for name, run in content["runs"].items() if (root / name).parent == folder.resolve()}
    return {Path(name).name: run for name, run in runs.items()}


def _journal(folder: Path, problems: list[str]) -> tuple[Path, Mapping[str, Any]] | None:
    """The journal of the study that `folder` is in; a damaged one is added to the problems and does not end the report."""
    try:
        return journal_of(folder)
    except ConfigError as error:
        problems.append(f"{LEFT_OUT}{error}")
        return None


def _study(journal: Any, statuses: Mapping[str, Mapping[str, Any]], archive: Archive) -> Study | None:
    if journal is not None:
        root, content = journal
        every = [str(run.get("status")) for run in statuses.values()]
        return Study(
            str(content.get("name") or ""),
            str(content.get("title", root.name)),
            bool(content.get("small")),
            _counted(every),
        )
    if archive.study is not None:
        every = [entry.status for entry in archive.entries]
        about = archive.study
        return Study(str(about.get("name") or ""), str(about["title"]), bool(about["small"]), _counted(every))
    return None


def _counted(statuses: Sequence[str]) -> dict[str, int]:
    return {status: statuses.count(status) for status in STATUSES}


def _each(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Runs that are named one by one."""
    runs: list[Run] = []
    problems: list[str] = []
    for folder in folders:
        try:
            journal = _journal(folder, problems)
            statuses = {} if journal is None else journal_inside(journal, folder.parent)
            own = (folder / CONFIG).exists() or (folder / RESULT).exists()
            runs.append(_of_folder(folder, statuses.get(folder.name)) if own else read_run(folder))
        except EquirelaxError as error:
            problems.append(f"{LEFT_OUT}{error}")
    return runs, problems


def _chapters(name: str, runs: Sequence[Run], problems: Sequence[str], study: Study | None) -> list[Chapter]:
    """A chapter for every benchmark and metric; the first one lists the problems."""
    kinds: dict[Any, list[Run]] = {}
    for run in runs:
        kinds.setdefault((run.result["benchmark"], run.result["metric"]["name"]), []).append(run)
    chapters = [
        _chapter(name, own, problems if not index else (), study) for index, own in enumerate(kinds.values())
    ]
    return chapters or [Chapter(name, (), (), tuple(problems))]


def _chapter(name: str, runs: Sequence[Run], problems: Iterable[str], study: Study | None) -> Chapter:
    """A chapter with its runs in the order of all tables."""
    ordered = [runs[index] for index in in_order([run.result for run in runs])]
    return Chapter(
        name, tuple(ordered), tuple(labels([run.result for run in ordered])), tuple(problems), study
    )


def _only_in_older(folder: Path, known: Sequence[Run]) -> list[Run]:
    """Runs in the summary of an older version whose folders no longer exist."""
    have = [run.result["config"] for run in known]
    return [
        Run(f"{result['method']}-seed{result['seed']}", result, (), "finished")
        for result in _listed_by_older(folder)
        if result["config"] not in have
    ]


def _listed_by_older(folder: Path) -> list[dict[str, Any]]:
    path = folder / OLDER
    if not path.exists():
        return []
    try:
        listed = json.loads(path.read_text(encoding="utf-8")).get("runs", [])
    except (OSError, ValueError, AttributeError):
        return []  # every comparison rewrites it; only the runs themselves count
    found = []
    for result in listed:
        try:
            check_result(result, path)
        except EquirelaxError:
            continue
        found.append(result)
    return found


def _in_order(runs: Sequence[Run], names: Sequence[str], configs: Sequence[Any]) -> list[Run]:
    """The runs in the order of the previous table, by name or else by settings; a new run follows those of its method."""
    known: dict[str, float] = {}
    for run in runs:
        if run.name in names:
            known[run.name] = names.index(run.name)
        elif run.result["config"] in configs:
            known[run.name] = configs.index(run.result["config"])
    last: dict[str, float] = {}
    for run in runs:
        if run.name in known:
            method = run.result["method"]
            last[method] = max(last.get(method, -1.0), known[run.name])

    def place(run: Run) -> tuple[float, list[tuple[float, str]]]:
        if run.name in known:
            return known[run.name], []
        method = run.result["method"]
        return last.get(method, len(known) + list(METHODS).index(method)) + 0.5, natural(run.name)

    return sorted(runs, key=place)


def natural(name: str) -> list[tuple[float, str]]:
    """A key that sorts the numbers in names by size: train200 before train1000."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if index % 2 else (0.0, part) for index, part in enumerate(parts)]


def series(table: Table, column: str) -> dict[int, float]:
    """Epoch (from 1) -> value, for epochs where the column has a finite one."""
    found = {int(row["epoch"]) + 1: float(row[column]) for row in table if row.get(column)}
    return {epoch: value for epoch, value in found.items() if math.isfinite(value)}


def sizes(table: Table) -> dict[str, dict[int, float]]:
    """Residual -> epoch (from 1) -> abs(gamma) times the norm of its weight, at the epochs for which both were recorded."""
    found = {}
    for column in table[0] if table else ():
        kind, _, key = column.partition("/")
        if kind == "gamma" and (norms := series(table, f"weight/{key}")):
            gammas = series(table, column)
            found[key] = {epoch: abs(gammas[epoch]) * norms[epoch] for epoch in norms if epoch in gammas}
    return found
