"""What was run, where, with which settings, and what it cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from equirelax_lab.report.numbers import Numbers
from equirelax_lab.report.rows import BASELINE, recipes_line
from equirelax_lab.report.runs import Chapter, Run
from equirelax_lab.report.statistics import shown
from equirelax_lab.report.table import Table, headline
from equirelax_lab.tasks.registry import base_of, config_from_dict
from equirelax_lab.tasks.task import heading
from equirelax_lab.training.folder import KINDS, differences

COST_NOTE = (
    "Seconds per epoch: median over the epochs of a run, mean over seeds; on a machine with other work they say little. "
    "Multiply-adds and the least time of one prediction were recorded after training. Projected networks have as many "
    "parameters as the strict one."
)


def cost(table: Table) -> Numbers:
    """Time per epoch and parameters, relaxed and projected; arithmetic and time of a prediction."""
    head: tuple[str, ...]
    head = ("method", "parameters (projected)", "in training", "seconds per epoch", "times strict")
    states = [(name, state) for name in ("multiply_adds", "milliseconds") for state in KINDS[:2]]
    words = {"multiply_adds": "million multiply-adds", "milliseconds": "ms"}
    every = [run for runs in table.rows.values() for run in runs]
    alone = len({run.result["model"] for run in every}) == 1
    base = [seconds for run in every if run.result["method"] == BASELINE for seconds in _epoch_seconds(run)]
    rows = []
    for label, runs in table.rows.items():
        own = [seconds for run in runs for seconds in _epoch_seconds(run)]
        parameters = [run.result["parameters"] for run in runs if run.finished][:1]
        cells = [f"{one[kind]:,}" for one in parameters for kind in ("strict", "relaxed")] or ["", ""]
        cells.append(shown(statistics.fmean(own), 3) if own else "")
        cells.append(
            f"{statistics.fmean(own) / statistics.fmean(base):.2f}" if own and base and alone else ""
        )
        for name, state in states:
            least = min(table.values(label, name, state).values(), default=None)
            cells.append(shown(least / 1e6 if name == "multiply_adds" and least else least, 4))
        rows.append((label, *cells))
    head += tuple(f"{words[name]}, {state}" for name, state in states)
    return Numbers("What training and predicting costs", head, tuple(rows))


def _epoch_seconds(run: Run) -> list[float]:
    """The median time of an epoch; for a run without metrics the mean, from the total time."""
    clock = [0.0, *(float(row["seconds"]) for row in run.rows if row.get("seconds"))]
    steps = [after - before for before, after in pairwise(clock) if after > before]
    if steps:
        return [statistics.median(steps)]
    return [run.result["seconds"] / run.result["epochs"]] if run.finished and run.result["epochs"] else []


def origin(chapter: Chapter, summary: Mapping[str, Any] | None) -> Numbers:
    """Benchmark, models, code and machine; everything that differed between the runs is listed."""
    done = [run.result for run in chapter.finished]
    rows = [
        ("benchmark", chapter.runs[0].result["benchmark"]),
        ("models", ", ".join(chapter.models)),
        ("metric", heading(chapter.metric)),
        ("runs", f"{len(done)} finished, {len(chapter.runs) - len(done)} not"),
    ]
    if summary is not None:
        versions = (", ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in done)
        rows += [
            ("recipes", recipes_line(done).partition(": ")[2].rstrip(".")),
            ("scaled down", summary["scaled_down"] or "no: the papers' size"),
            ("commits", ", ".join(summary["commits"])),
            ("machine", "; ".join(dict.fromkeys(_machine(result["hardware"]) for result in done))),
            ("versions", "; ".join(dict.fromkeys(versions))),
        ]
    return Numbers("Origin", ("what", "value"), tuple(rows))


def _machine(hardware: Mapping[str, Any]) -> str:
    device = f", {hardware['gpu']}" if hardware.get("gpu") else ""
    return f"{hardware['cpu']}{device}, {hardware['cores']} cores, {hardware['threads']} thread(s) a run"


def changed(chapter: Chapter) -> Numbers:
    """The settings of every row that are not the papers'."""
    rows = []
    for label, runs in chapter.by_label().items():
        config = config_from_dict({**runs[0].result["config"], "seed": 0})
        found = differences(base_of(config).to_dict(), config.to_dict())
        words = (one.replace(" was ", ": ").replace(" and is now ", " → ") for one in found)
        rows.append((label, "; ".join(words) or "none"))
    return Numbers("Settings that are not the papers'", ("method", "papers' value → value here"), tuple(rows))


def runs(chapter: Chapter) -> Numbers:
    """A row for every run: its progress and its result."""
    rows = []
    for label, run in zip(chapter.labels, chapter.runs, strict=True):
        result = run.result
        epochs = result["epochs"] if run.finished else int(run.rows[-1]["epoch"]) + 1 if run.rows else 0
        test = result["test"] if run.finished else {}
        rows.append(
            (
                run.name,
                label,
                str(result["seed"]),
                run.status,
                str(epochs),
                str(result.get("selected_epoch", "")),
                shown(result["val"][headline(result["method"])]) if run.finished else "",
                *(shown(test.get(state)) for state in KINDS[:2]),
                shown(result.get("seconds"), 4),
                str(result.get("commit", ""))[:10],
            )
        )
    head = ("run", "method", "seed", "state", "epochs", "selected epoch", "validation")
    more = ("test, relaxed", "test, projected", "seconds", "commit")
    return Numbers("Every run", head + more, tuple(rows))
