"""`equirelax search`: search for good settings of a method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equirelax.errors import ConfigError
from equirelax.files import storage_errors
from equirelax.settings import COUNT, JOBS
from equirelax_lab.cli import options
from equirelax_lab.cli.help import columns, filled, rows
from equirelax_lab.cli.study import add_execution, schedule
from equirelax_lab.cli.terminal import show
from equirelax_lab.data.root import named_root
from equirelax_lab.studies.search import figures, read_search
from equirelax_lab.studies.study import find_file, ready_names
from equirelax_lab.studies.trials import check_data, check_owner
from equirelax_lab.tasks.registry import build_task
from equirelax_lab.tasks.task import heading
from equirelax_lab.training.folder import read_result

DESCRIPTION = """Search for settings of a method that are good on the validation set.

  equirelax search FILE           search, or continue a search; finished trials are kept, interrupted ones continued
  equirelax search FOLDER         show the trials of a search, and the best one

FILE is a YAML file, or the name of one that comes with equirelax (listed without FILE):

  title: The dual step size of ACE on N-body
  benchmark: nbody
  model: segnn
  method: ace
  settings: {epochs: 60, dataset: {train: 1000}}  # of every run
  search:
    # or linear, integer: two ends; or choice: a list
    strength.dual_lr: {log: [1.0e-5, 1.0e-2]}
    # settings that take the same value
    lie_weight+norm_weight: {log: [1.0e-4, 1]}
  trials: 20
  seed: 0           # of the suggestions; run_seed is that of the runs
  pruner: median    # or none
  startup: 5        # first trials, drawn at random and never ended early
  warmup: 20        # epochs before which no run is ended
  small: {trials: 6, settings: {epochs: 20}}

Optuna suggests the settings of each trial from the results of the earlier ones. A run whose validation value is worse than
the median of the others after as many epochs is ended early. Only validation of projected models counts (of relaxed ones
for methods that deploy them). The test set is not used. OUT receives a folder for every trial, search.json with all of
them, and best.yaml, a study of the best settings over several seeds beside the strict network."""


def main(words: Sequence[str]) -> int:
    """Run the command line `words`, which begins with "search"; returns the exit code."""
    rest = list(words[1:])
    parser = _parser()
    if not rest or {"-h", "--help"} & set(rest):
        if rest:
            parser.print_help()
        titles = {
            name: read_search(find_file(name, searches=True)).title for name in ready_names(searches=True)
        }
        print(filled("\n".join(["searches that come with equirelax:", *rows(titles.items())]), columns()))
        return 0 if rest else 2
    given = options.parse(parser, rest, jobs=JOBS, trials=COUNT)
    path = Path(given.search)
    if path.is_dir() or path.name == "search.json":
        show(table(_read(path if path.name == "search.json" else path / "search.json")))
        return 0
    search = read_search(find_file(given.search, searches=True), given.small)
    from equirelax_lab.studies.suggestions import (
        HISTORY,
        OUTCOME,
        Suggestions,
    )  # imports Optuna, which help does not need

    if given.trials is not None:
        search = dataclasses.replace(search, trials=given.trials)
    name = f"{search.name}-small" if search.small else search.name
    out = Path(given.out) if given.out else Path("runs") / "searches" / name
    check_owner(search, out)
    root = named_root(given.data)
    check_data([search.config], root)
    source = Suggestions(search, build_task(search.config, root).metric)
    with storage_errors(out / HISTORY):
        code = schedule(search, out, given, source, search.trials, search.trials)
    if code == 130:
        return code
    print()
    show(table(_read(out / OUTCOME)))
    return 0 if source.succeeded else 1


def table(found: Mapping[str, Any]) -> str:
    """The content of search.json as a table of all trials, the best ones first, and how to continue."""
    metric, best = found["metric"], found["best"]
    keys = list(found["search"]["search"])
    kind = found["optimised"].removeprefix("val/")
    lines = [
        f"{found['title']}",
        "",
        f"| trial | {' | '.join(keys)} | validation {heading(metric)} ({kind}) | epochs | end |",
        "| --- " * (len(keys) + 4) + "|",
    ]
    sign = -1 if metric["higher_is_better"] else 1
    order = {"finished": 0, "pruned": 1, "running": 2, "failed": 3}
    trials = sorted(
        found["trials"],
        key=lambda t: (order[t["status"]], float("inf") if t["value"] is None else sign * t["value"]),
    )
    for trial in trials:
        values = " | ".join(figures(trial["values"].get(key)) for key in keys)
        value = figures(trial["value"])
        end = trial["status"] + (f": {trial['reason']}" if trial["reason"] else "")
        lines.append(f"| {trial['number']} | {values} | {value} | {trial['epochs']} | {end} |")
    lines.append("")
    if best is None:
        lines.append("No trial has worked.")
    else:
        settings = ", ".join(f"{key} = {value}" for key, value in best["values"].items())
        lines += [
            f"Best: trial {best['number']}: {settings}",
            "To repeat its run (one seed; best.yaml is a study of several seeds beside strict):",
            f"  {found['command']}",
        ]
    if found["left"]:
        lines.append(f"{found['left']} trials are left; the same command goes on.")
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ConfigError(f"{path.parent} is not the folder of a search: there is no {path.name} in it.")
    found = read_result(path)
    if not isinstance(found, dict) or not {"trials", "best", "metric", "search", "optimised", "left"} <= set(
        found
    ):
        raise ConfigError(
            f"{path} was not written by a search. Remove it and search again; finished trials are kept."
        )
    return found


def _parser() -> options.ArgumentParser:
    parser = options.parser(["search"], DESCRIPTION)
    parser.add_argument(
        "search",
        metavar="FILE",
        help="search file, name of one that comes with equirelax, or a search's folder",
    )
    parser.add_argument("--small", action="store_true", help="the small variant, for a laptop")
    parser.add_argument(
        "-o", "--out", help="folder of the search (default: runs/searches/NAME, or NAME-small)"
    )
    parser.add_argument("--trials", type=int, help="trials in all (default: the file's)")
    add_execution(parser)
    return parser
