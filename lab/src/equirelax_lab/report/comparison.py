"""Everything that a comparison leaves behind: its archive, summary.md and pictures; also for studies, and anew from archives."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError
from equirelax.files import write_text
from equirelax_lab.report import figures, tables
from equirelax_lab.report.archive import RUNS, write_archive
from equirelax_lab.report.conclusion import conclusion
from equirelax_lab.report.drawing import png
from equirelax_lab.report.rows import differing_line
from equirelax_lab.report.runs import OLDER, Chapter, Run, archived, comparison_folders, read_folder, read_run
from equirelax_lab.report.statistics import spread_text
from equirelax_lab.report.summary import summarise
from equirelax_lab.report.table import Table
from equirelax_lab.studies.study import Study
from equirelax_lab.studies.trials import Trial, grid_folder, left_out
from equirelax_lab.tasks.registry import task_class
from equirelax_lab.tasks.task import heading
from equirelax_lab.training.folder import CONFIG, RESULT

TABLE, PICTURE, SWEEP, CONDITIONS = "summary.md", "curves.png", "sweep.png", "conditions.png"


def compare_folders(out: Path, folders: Sequence[Path]) -> str:
    """`write_comparison` of the finished runs in `folders`, in that order.

    Raises:
        ConfigError: None of them is finished, or one cannot be read.
    """
    return write_comparison(out, [read_run(folder) for folder in folders if (folder / RESULT).exists()])


def write_comparison(out: Path, runs: Sequence[Run], source: Path | None = None) -> str:
    """Write what a comparison leaves behind into `out`.

    Args:
        out: A folder.
        runs: Of one benchmark, in the order of the table. Those without a result are kept in the archive, and count as failed
            where their status says so.
        source: The folder that held them, where that is not `out`; the journal of their study is looked for there.

    Returns:
        The tables, the path of the picture of curves and the concluding sentence.

    Raises:
        ConfigError: No run is finished.
    """
    done = [run for run in runs if run.finished]
    summary = summarise([run.result for run in done])
    write_archive(out, archived(runs, source or out))
    title, metric, table = task_class(summary["benchmark"]).title, summary["metric"], Table(done)
    levels = tables.levels(table)
    text = comparison_text(summary, [run.result for run in runs if run.failed], levels)
    sentence = conclusion(summary)
    write_text(out / TABLE, f"# {title}\n\n{text}\n{sentence}\n")
    titled = f"{title} ({summary['model']})"
    for name, drawn, columns in (
        (PICTURE, figures.curves_picture(table, metric), 2),
        (SWEEP, figures.sweeps(done, metric), 3),
        (CONDITIONS, figures.further_conditions(levels, metric), 3),
    ):
        if drawn:
            png(out / name, drawn, titled, columns)
    return f"\n{text}\npicture: {out / PICTURE}\n\n{sentence}"


def comparison_text(
    summary: Mapping[str, Any], failed: Sequence[Mapping[str, Any]], levels: tables.Levels
) -> str:
    """All tables of summary.md."""
    text = tables.summary_text(summary)
    if tables.asks_for_failures(summary["runs"], failed):
        shares = tables.failures(tables.shares(summary["runs"], failed))
        text += "" if shares is None else f"\n{shares.markdown()}\n{tables.DEFINITION}\n"
    conditions = tables.conditions(levels, summary["metric"])
    return text + ("" if conditions is None else f"\n{conditions.title}\n\n{conditions.markdown()}")


def draw_pictures(out: Path, chapters: Sequence[Chapter]) -> list[Path]:
    """Write the main figures of a report as PNG files into `out`: NAME-curves.png for every chapter and, where there is something
    to draw, NAME-layers-ROW.png (layer by time), NAME-sweep.png and NAME-conditions.png; returns the files.
    """
    found: list[Path] = []
    for chapter in chapters:
        for name, (drawn, columns) in figures.chapter_pictures(chapter).items():
            stem = re.sub(r"[^A-Za-z0-9.=_-]+", "-", f"{chapter.name}-{name}").strip("-.")
            used = sum(path.stem == stem or path.stem.startswith(f"{stem}~") for path in found)
            found.append(out / f"{stem}{f'~{used + 1}' if used else ''}.png")
            png(found[-1], drawn, f"{chapter.title}: {name}", columns)
    return found


def comparisons(paths: Sequence[Path], written: bool = True) -> list[Path]:
    """The folders of comparisons in `paths`, at any depth.

    Args:
        paths: Folders.
        written: Whether a comparison must have been summarised before; otherwise any folder with runs in it is one.

    Raises:
        ConfigError: One of the paths holds none.
    """
    found: list[Path] = []
    for path in paths:
        here = comparison_folders(path)
        if written:
            here = [
                folder for folder in here if any((folder / name).exists() for name in (RUNS, OLDER, TABLE))
            ]
        if not here:
            raise ConfigError(
                f"{path} holds no comparison: no folder in it has {RUNS if written else 'runs'}. Name a folder that "
                "`equirelax compare`, `equirelax study run` or `equirelax archive` wrote."
            )
        found += here
    return list(dict.fromkeys(found))


def summarise_again(folder: Path, out: Path | None = None) -> str:
    """Write a comparison's archive, table and pictures anew; without a finished run, the archive alone.

    Args:
        folder: Of the comparison: folders of runs, an archive, or both.
        out: Where to; None: `folder` itself.

    Returns:
        The tables and the concluding sentence.

    Raises:
        ConfigError: A run cannot be read.
    """
    runs, problems, _ = read_folder(folder)
    if damaged := [words for words in problems if words.startswith("Left out")]:
        raise ConfigError(f"{folder} cannot be summarised. {' '.join(damaged)}")
    if any(run.finished for run in runs):
        return write_comparison(out or folder, runs, folder)
    write_archive(out or folder, archived(runs, folder))
    return "No run is finished: there is nothing to compare yet."


def compare_grids(study: Study, trials: Sequence[Trial], out: Path) -> str:
    """Write the comparison of every grid that has finished runs; returns their tables and sentences.

    Args:
        study: The study.
        trials: Of all its runs.
        out: Its folder.
    """
    parts = []
    for grid in study.grids:
        own = [trial for trial in trials if trial.grid == grid.name and (trial.folder / CONFIG).exists()]
        title = f"\n## {grid.name}\n" if len(study.grids) > 1 else ""
        if not any(trial.status == "finished" for trial in own):
            parts.append(f"{title}\nNo run is finished: there is nothing to compare.")
            continue
        # in the order of the file, not of the seeds: that is the order of the table's rows
        kinds = list(dict.fromkeys(trial.kind for trial in trials if trial.grid == grid.name))
        own.sort(key=lambda trial: kinds.index(trial.kind))
        runs = [_run_of(trial) for trial in own if trial.status in ("finished", "failed")]
        parts.append(title + write_comparison(out / grid_folder(study, grid), runs))
    return "\n".join(parts)


def _run_of(trial: Trial) -> Run:
    run = read_run(trial.folder)
    return run if run.finished else Run(run.name, run.result, run.rows, trial.status, trial.reason)


def beside(study: Study, out: Path) -> str:
    """Our numbers and the published ones in one table, what the papers say, and what was scaled down.

    Reads the archives that `compare_grids` wrote.
    """
    rows, scales, differing = [], [], []
    for grid in study.grids:
        folder = out / grid_folder(study, grid)
        results = (
            [run.result for run in read_folder(folder)[0] if run.finished] if (folder / RUNS).exists() else []
        )
        if not results:
            continue
        summary = summarise(results)
        rows += [(grid.name, *row) for row in _rows(summary)]
        where = f"{grid.name}: " if len(study.grids) > 1 else ""
        differing.append(where + differing_line(results))
        if summary["scaled_down"]:
            scales.append(where + summary["scaled_down"])
    lines = ["\nOurs beside the published:"]
    if rows:
        lines += ["", "| grid | method | metric | ours | published |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines += ["", *differing]
    else:
        lines[0] += " no published number of these runs is known to us."
    if study.published:
        lines += ["", f"Published: {study.published}"]
    scales += [f"the small variant: {change}" for change in study.changed]
    lines += ["", "Scaled down: " + ("; ".join(dict.fromkeys(scales)) if scales else "nothing") + "."]
    return "\n".join(lines)


def described(study: Study, found: Sequence[Trial]) -> str:
    """What a study would run, in words."""
    lines = [study.title, ""]
    if study.published:
        lines += [f"Published: {study.published}", ""]
    for grid in study.grids:
        mine = [trial for trial in found if trial.grid == grid.name]
        models = ", ".join(dict.fromkeys(trial.config.model for trial in mine))
        lines += [
            f"{grid.name}: {len(mine)} runs on {grid.benchmark}",
            f"  models   {models}",
            f"  methods  {', '.join(grid.methods)}",
            f"  seeds    {', '.join(map(str, grid.seeds))}",
        ]
        lines += [f"  sweep    {key}: {', '.join(map(_point, values))}" for key, values in grid.sweep.items()]
        lines += [f"  setting  {key} = {value}" for key, value in _flat(grid.settings).items()]
        for names in (grid.per_model, grid.per_method):
            lines += [
                f"  {name}: {key} = {value}"
                for name, own in names.items()
                for key, value in _flat(own).items()
            ]
        if skipped := left_out(grid):
            lines.append(f"  left out, for there is nothing to relax: {', '.join(skipped)}")
    if study.changed:
        lines += ["", f"The small variant: {'; '.join(study.changed)}."]
    often = "once" if study.attempts == 1 else f"{study.attempts} times"
    return "\n".join([*lines, "", f"{len(found)} runs in all; a run that breaks is tried {often}."])


def _point(value: Any) -> str:
    """A swept value; of several settings that change together, 1/2/3."""
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(method, metric, ours, published) of those that have a published number."""
    rows = []
    for name, row in summary["methods"].items():
        if row["published"]:
            spread = row["test"][row["headline"]]
            seeds = len(row["seeds"])
            ours = f"{spread_text(spread)} ({row['headline']}, {seeds} seed{'s' if seeds > 1 else ''})"
            rows.append((name, heading(summary["metric"]), ours, row["published"]))
    return rows


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
