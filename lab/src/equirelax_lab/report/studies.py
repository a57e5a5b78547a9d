"""What a study leaves behind: a comparison for every grid, and ours beside the papers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equirelax_lab.report.collect import of_config
from equirelax_lab.report.comparison import SUMMARY, write_comparison
from equirelax_lab.report.differing import differing_line
from equirelax_lab.report.rounding import spread_text
from equirelax_lab.studies.spec import Grid, Study
from equirelax_lab.studies.state import State
from equirelax_lab.studies.trials import Trial, grid_folder, left_out
from equirelax_lab.tasks.task import heading
from equirelax_lab.training.folder import CONFIG, read_result


def compare_grids(study: Study, states: Sequence[State], out: Path) -> str:
    """Write the comparison of every grid that has finished runs; returns their tables and sentences.

    Args:
        study: The study. states: Of all its runs. out: Its folder.
    """
    parts = []
    for grid in study.grids:
        done = [s for s in states if s.trial.grid == grid.name and s.status == "finished"]
        title = f"\n## {grid.name}\n" if len(study.grids) > 1 else ""
        if not done:
            parts.append(f"{title}\nNo run is finished: there is nothing to compare.")
            continue
        # in the order of the file, not of the seeds: that is the order of the tables' rows
        kinds = _kinds(states, grid)
        done.sort(key=lambda state: kinds.index(state.trial.kind))
        lost = [
            of_config(s.trial.config)
            for s in states
            if s.trial.grid == grid.name and s.status == "failed" and (s.folder / CONFIG).exists()
        ]
        folder = out / grid_folder(study, grid)
        parts.append(title + write_comparison(folder, [s.folder for s in done], lost))
    return "\n".join(parts)


def beside(study: Study, out: Path) -> str:
    """Our numbers and the published ones in one table, what the papers say, and what was scaled down.

    Reads the summaries that `compare_grids` wrote.
    """
    rows, scales, differing = [], [], []
    for grid in study.grids:
        path = out / grid_folder(study, grid) / SUMMARY
        if not path.exists():
            continue
        summary = read_result(path)
        rows += [(grid.name, *row) for row in _rows(summary)]
        where = f"{grid.name}: " if len(study.grids) > 1 else ""
        differing.append(where + differing_line(summary["runs"]))
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
    return "\n".join(
        [*lines, "", f"{len(found)} runs in all; a run that breaks is tried {study.attempts} times."]
    )


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


def _kinds(states: Sequence[State], grid: Grid) -> list[str]:
    return list(dict.fromkeys(s.trial.kind for s in states if s.trial.grid == grid.name))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
