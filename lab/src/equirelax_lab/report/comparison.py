"""Write the files of a comparison: archive, summary.md, tables, pictures. Also for studies, and anew from archives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError, EquirelaxError
from equirelax.files import write_text
from equirelax_lab.report import again, failures, tables
from equirelax_lab.report.archive import RUNS, read_archive, write_archive
from equirelax_lab.report.conclusion import conclusion
from equirelax_lab.report.drawing import png
from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.pictures import CURVES, pictures
from equirelax_lab.report.rows import differing_line, in_order
from equirelax_lab.report.runs import (
    LEFT_OUT,
    OLDER,
    Run,
    archived,
    comparison_folders,
    read_folder,
    read_run,
)
from equirelax_lab.report.statistics import spread_text
from equirelax_lab.report.summary import summarise
from equirelax_lab.report.table import Table
from equirelax_lab.studies.study import Study
from equirelax_lab.studies.trials import Trial, grid_folder, left_out
from equirelax_lab.tasks.registry import task_class
from equirelax_lab.tasks.task import heading
from equirelax_lab.training.folder import CONFIG

TABLE, TABLES = "summary.md", "tables"
"""The file with all tables, and the folder with a CSV and a LaTeX file for each."""


def write_comparison(
    out: Path, runs: Sequence[Run], source: Path | None = None, problems: Sequence[str] = ()
) -> str:
    """Write the files of a comparison into `out`: archive, summary.md, its tables as CSV and LaTeX, pictures.

    Args:
        out: A folder.
        runs: Runs of one benchmark. Those without a result are kept in the archive, and count as failed if their status says so.
        source: The folder that held them, if that is not `out`; the journal of their study is searched for there.
        problems: What was left out and why, a sentence each; they are written below the tables.

    Returns:
        The tables, the path of the picture of curves, what was left out, and the concluding sentences.

    Raises:
        ConfigError: No run is finished.
    """
    runs = [runs[index] for index in in_order([run.result for run in runs])]
    done = [run for run in runs if run.finished]
    summary = summarise([run.result for run in done])
    write_archive(out, archived(runs, source or out))
    title, metric, table = task_class(summary["benchmark"]).title, summary["metric"], Table(done)
    lost = [run.result for run in runs if run.failed]
    text = comparison_text(summary, lost, tables.levels(table))
    text += "".join(f"\n**Left out**: {words}\n" for words in problems)
    sentence, command = conclusion(summary, lost), again.summarise(out)
    made = f"Tables and pictures are written again by `{command}`."
    write_text(out / TABLE, f"# {title}\n\n{text}\n{made}\n\n{sentence}\n")
    _write_tables(out / TABLES, comparison_tables(summary, lost, tables.levels(table)))
    titled = f"{title} ({summary['model']})"
    for name, (drawn, columns) in pictures(table, done, metric).items():
        png(out / f"{name}.png", drawn, titled, columns, command)
    return f"\n{text}\npicture: {out / f'{CURVES}.png'}\n\n{sentence}"


def _write_tables(folder: Path, found: Sequence[Numbers]) -> None:
    """Write every table as CSV and as LaTeX, and remove the files of tables that no longer exist."""
    files = {name: text for numbers in found for name, text in numbers.files().items()}
    for path in folder.glob("*"):
        if path.suffix in (".csv", ".tex") and path.name not in files:
            path.unlink()
    for name, text in files.items():
        write_text(folder / name, text)


def comparison_tables(
    summary: Mapping[str, Any], failed: Sequence[Mapping[str, Any]], levels: tables.Levels
) -> list[Numbers]:
    """All tables of summary.md."""
    found: list[Numbers | None] = [tables.main(summary), *tables.details(summary)]
    if failures.asks_for_failures(summary["runs"], failed):
        found.append(failures.failures(failures.shares(summary["runs"], failed)))
    found.append(tables.conditions(levels, summary["metric"]))
    return [numbers for numbers in found if numbers is not None]


def comparison_text(
    summary: Mapping[str, Any], failed: Sequence[Mapping[str, Any]], levels: tables.Levels
) -> str:
    """All tables of summary.md, and the text between them."""
    text = tables.summary_text(summary)
    if failures.asks_for_failures(summary["runs"], failed):
        shares = failures.failures(failures.shares(summary["runs"], failed))
        text += "" if shares is None else f"\n{shares.markdown()}\n{failures.DEFINITION}\n"
    conditions = tables.conditions(levels, summary["metric"])
    return text + ("" if conditions is None else f"\n{conditions.title}\n\n{conditions.markdown()}")


def comparisons(paths: Sequence[Path], written: bool = True) -> list[Path]:
    """The folders of comparisons in `paths`, at any depth.

    Args:
        paths: Folders.
        written: Whether a comparison must have been summarised before; otherwise any folder with runs in it is one.

    Raises:
        ConfigError: One of the paths contains no comparison.
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
    """Write a comparison's archive, table and pictures anew; without a finished run, only the archive.

    Args:
        folder: The folder of the comparison, which holds folders of runs, an archive, or both.
        out: The folder to write to; None takes `folder` itself.

    Returns:
        The tables and the concluding sentence.

    Raises:
        ConfigError: A run cannot be read.
    """
    if (folder / RUNS).exists():
        read_archive(folder)  # a damaged one is not overwritten
    runs, problems, _ = read_folder(folder)
    damaged = [words for words in problems if words.startswith(LEFT_OUT)]
    if any(run.finished for run in runs):
        named = [words.removeprefix(LEFT_OUT).replace(f"{folder}/", "") for words in damaged]
        return write_comparison(out or folder, runs, folder, named)
    if damaged:
        raise ConfigError(f"{folder} has no run that can be summarised. {' '.join(damaged)}")
    write_archive(out or folder, archived(runs, folder))
    return "No run is finished: there is nothing to compare yet."


def compare_grids(study: Study, trials: Sequence[Trial], out: Path) -> str:
    """Write the comparison of every grid that has finished runs; returns their tables and sentences.

    Args:
        study: The study.
        trials: The trials of all its runs.
        out: Its folder.
    """
    parts = []
    for grid in study.grids:
        own = [trial for trial in trials if trial.grid == grid.name and (trial.folder / CONFIG).exists()]
        title = f"\n## {grid.name}\n" if len(study.grids) > 1 else ""
        if not any(trial.status == "finished" for trial in own):
            parts.append(f"{title}\nNo run is finished: there is nothing to compare.")
            continue
        # In the order of the file, not of the seeds: this is the order of the table's rows.
        kinds = list(dict.fromkeys(trial.kind for trial in trials if trial.grid == grid.name))
        own.sort(key=lambda trial: kinds.index(trial.kind))
        runs, damaged = [], []
        for trial in own:
            if trial.status in ("finished", "failed"):
                try:
                    runs.append(_run_of(trial))
                except EquirelaxError as error:
                    damaged.append(str(error).replace(f"{trial.folder.parent}/", ""))
        if any(run.finished for run in runs):
            parts.append(title + write_comparison(out / grid_folder(study, grid), runs, problems=damaged))
        else:
            parts.append(f"{title}\nNo run can be compared. {' '.join(damaged)}")
    return "\n".join(parts)


def _run_of(trial: Trial) -> Run:
    run = read_run(trial.folder)
    return run if run.finished else Run(run.name, run.result, run.rows, trial.status, trial.reason)


def beside(study: Study, out: Path) -> str:
    """Our numbers and the published ones in one table, the papers' statements, and what was scaled down.

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
    """Describe what a study would run."""
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
    """A swept value; 1/2/3 for several settings that change together."""
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(method, metric, ours, published) of the rows that have a published number."""
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
