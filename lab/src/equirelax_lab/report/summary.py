"""From the result.json of many runs to one summary, and a table of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from equirelax.errors import ConfigError
from equirelax_lab.report.rounding import decimals, difference_text, interval_text, spread_text
from equirelax_lab.report.rows import (
    BASELINE,
    Result,
    baseline_row,
    by_label,
    marked_line,
    method_of,
    recipes_line,
    settings_that_differ,
    strict_rows,
)
from equirelax_lab.report.statistics import paired, spread
from equirelax_lab.report.strengths import spikes_note, strengths_of, strengths_table
from equirelax_lab.tasks.methods import choice
from equirelax_lab.tasks.registry import build_task, config_from_dict
from equirelax_lab.tasks.task import heading
from equirelax_lab.training.folder import KINDS


def headline(method: str) -> str:
    """Which number a method is judged by: projected, or relaxed where that is what is deployed."""
    return "relaxed" if choice(method).deploys_relaxed else "projected"


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics over seeds for every method (and variant of its settings), in the order of `results`.

    Args:
        results: Contents of result.json files of one benchmark.

    Raises:
        ConfigError: no results, or results of several benchmarks.
    """
    if not results:
        raise ConfigError("There is no finished run to summarise.")
    if len({r["benchmark"] for r in results}) > 1:
        raise ConfigError("A summary is of one benchmark; the results are of several.")
    first = results[0]
    rows = by_label(results)
    methods = {}
    for name, runs in rows.items():
        strict = baseline_row(runs[0], rows)
        methods[name] = _method(name, runs, strict, rows)
    return {
        "benchmark": first["benchmark"],
        "model": ", ".join(dict.fromkeys(r["model"] for r in results)),
        "metric": first["metric"],
        "methods": methods,
        "settings_that_differ": settings_that_differ(results),
        "scaled_down": _scaled_down(results),
        "commits": sorted({str(r["commit"]) for r in results}),
        "hardware": first["hardware"],
        "versions": first["versions"],
        "runs": list(results),
    }


def _published(label: str, run: Mapping[str, Any]) -> str | None:
    """The published value of a run's model and method; a variant of their settings has none."""
    if label not in (run["method"], f"{run['method']} {run['model']}"):
        return None
    return build_task(config_from_dict(run["config"])).published().get(run["method"])


def _scaled_down(results: Sequence[Mapping[str, Any]]) -> str | None:
    """In words where the runs are smaller than the papers' setting: what all models share, then what differs by model."""
    by_model = {r["model"]: (r["scaled_down"] or "").split("; ") for r in results}
    lists = list(by_model.values())
    shared = [part for part in lists[0] if part and all(part in parts for parts in lists)]
    found = ["; ".join(shared)]
    for model, parts in by_model.items():
        own = [part for part in parts if part and part not in shared]
        found += [f"{model}: {', '.join(own)}"] if own else []
    return "; ".join(filter(None, found)) or None


def _method(
    label: str, runs: Sequence[Result], strict: str | None, rows: Mapping[str, Sequence[Result]]
) -> dict[str, Any]:
    """The row of `runs`, compared with the row `strict`."""
    name = method_of(label)
    kind = headline(name)
    strict_runs = {} if strict is None else {r["seed"]: r for r in rows[strict]}
    baseline = {seed: run["test"]["projected"] for seed, run in strict_runs.items()}
    tests: dict[str, Any] = {}
    for key in KINDS:
        values = [r["test"][key] for r in runs if r["test"][key] is not None]
        tests[key] = asdict(spread(values)) if values else None
    compared = (
        None
        if name == BASELINE
        else paired(
            {r["seed"]: r["test"][kind] for r in runs},
            baseline,
            runs[0]["metric"].get("higher_is_better", False),
        )
    )
    errors = [r["equivariance_error"] for r in runs if r["equivariance_error"] is not None]
    return {
        "method": name,
        "model": runs[0]["model"],
        "strict": statistics.fmean(baseline.values()) if baseline else None,
        "compared_with": strict,
        "seeds": [r["seed"] for r in runs],
        "headline": kind,
        "residuals": max(len(r["gammas"]) for r in runs),
        "test": tests,
        "val": asdict(spread([r["val"][kind] for r in runs])),
        "paired_with_strict": None if compared is None else compared.to_dict(),
        "published": _published(label, runs[0]),
        "parameters": runs[0]["parameters"],
        "equivariance_error": {
            "before": max(e["before"] for e in errors),
            "after": max(e["after"] for e in errors),
            "group": errors[0]["group"],
            "dtype": errors[0]["dtype"],
        }
        if errors
        else None,
        "seconds": asdict(spread([r["seconds"] for r in runs])),
        "averaged": _averaged(name, runs, strict_runs),
        "further": _further(runs),
        "inference": _inference(runs, kind),
        "largest_gamma": max((abs(g) for r in runs for g in r["gammas"].values()), default=0.0),
        "strengths": strengths_of(runs),
    }


def _averaged(
    name: str, runs: Sequence[Mapping[str, Any]], strict_runs: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Test errors of averaged weights, and how they differ from those of strict runs' averaged weights; None without."""
    found = {r["seed"]: r["averaged"]["test"] for r in runs if r.get("averaged")}
    if not found:
        return None
    kind = headline(name)
    baseline = {
        seed: r["averaged"]["test"]["projected"] for seed, r in strict_runs.items() if r.get("averaged")
    }
    compared = None
    if name != BASELINE:
        higher = runs[0]["metric"].get("higher_is_better", False)
        compared = paired({seed: test[kind] for seed, test in found.items()}, baseline, higher)
    return {
        "decays": sorted({r["averaged"]["decay"] for r in runs if r.get("averaged")}),
        "test": {
            state: asdict(spread([test[state] for test in found.values()]))
            for state in ("relaxed", "projected")
        },
        "paired_with_strict": None if compared is None else compared.to_dict(),
    }


def _further(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Spread of every metric but the headline on the test set: name -> relaxed, projected -> spread."""
    found = runs[0].get("metrics", {}).get("test", {})
    names = [name for name in found.get("projected", {}) if name != runs[0]["metric"]["name"]]
    return {
        name: {
            kind: asdict(spread([r["metrics"]["test"][kind][name] for r in runs]))
            for kind in ("relaxed", "projected")
        }
        for name in names
    }


def _inference(runs: Sequence[Mapping[str, Any]], kind: str) -> dict[str, float] | None:
    """Multiply-adds of a prediction, and the least time that any run took for one."""
    costs = [r["inference"][kind] for r in runs if "inference" in r]
    if not costs:
        return None
    return {key: min(cost[key] for cost in costs) for key in ("multiply_adds", "milliseconds")}


def table(summary: Mapping[str, Any]) -> str:
    """The summary as a markdown table with a line of context below it."""
    lines = []
    head = [
        "method",
        f"test {heading(summary['metric'])}",
        *KINDS,
        "minus strict (paired)",
        "better seeds",
    ]
    head += ["published", "parameters (training)", "equivariance error, relaxed → projected", "seconds"]
    lines.append("| " + " | ".join(head) + " |")
    lines.append("|" + " --- |" * len(head))
    for name, row in summary["methods"].items():
        test, errors = row["test"], row["equivariance_error"]
        compared = row["paired_with_strict"]
        # networks without residuals (Equi-Tuning, Equi-Adapt, REMUL on a plain one) have one state; strict ones too, but
        # they are what the others are projected to
        relaxes = row["method"] == BASELINE or row["residuals"] > 0
        parameters = row["parameters"]
        cells = [
            name,
            f"**{spread_text(test[row['headline']])}** ({row['headline'] if relaxes else 'as trained'})",
            *(spread_text(test[kind]) if relaxes else "" for kind in KINDS),
            "" if compared is None else _paired(compared, decimals(test[row["headline"]]["mean"])),
            "" if compared is None else f"{compared['wins']} of {compared['count']}",
            row["published"] or "",
            f"{parameters['strict']:,} ({parameters['relaxed']:,})",
            "n/a" if errors is None else f"{errors['before']:.1e} → {errors['after']:.1e}",
            f"{row['seconds']['mean']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(
        [
            *lines,
            "",
            marked_line(summary["runs"]),
            "",
            _context(summary)
            + "\n"
            + averaged_table(summary)
            + _details(summary)
            + strengths_table(summary)
            + spikes_note(summary),
        ]
    )


def averaged_table(summary: Mapping[str, Any]) -> str:
    """Markdown: test errors of weights averaged over training, compared with strict ones averaged alike; empty without."""
    methods = {name: row for name, row in summary["methods"].items() if row.get("averaged")}
    if not methods:
        return ""
    head = (
        "averaged weights",
        "decay",
        f"test {heading(summary['metric'])}",
        "relaxed",
        "projected",
        "minus strict, averaged (paired)",
        "better seeds",
    )
    lines = ["", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, row in methods.items():
        found, compared = row["averaged"], row["averaged"]["paired_with_strict"]
        best = found["test"][row["headline"]]
        cells = [
            name,
            ", ".join(f"{decay:g}" for decay in found["decays"]),
            f"**{spread_text(best)}** ({row['headline']})",
            *(spread_text(found["test"][kind]) for kind in ("relaxed", "projected")),
            "" if compared is None else _paired(compared, decimals(best["mean"])),
            "" if compared is None else f"{compared['wins']} of {compared['count']}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _details(summary: Mapping[str, Any]) -> str:
    """A second table: further metrics, and the cost of a prediction by the deployed models; empty without them."""
    methods = {name: row for name, row in summary["methods"].items() if row.get("inference")}
    if not methods:
        return ""
    further = list(dict.fromkeys(key for row in methods.values() for key in row["further"]))
    kinds = ("relaxed", "projected") if any(row["residuals"] for row in methods.values()) else ("projected",)
    shown = [(key, kind) for key in further for kind in kinds]
    head = [
        "method",
        *(f"test {key}" + (f", {kind}" if len(kinds) > 1 else "") for key, kind in shown),
        "million multiply-adds a prediction",
        "ms (least)",
    ]
    lines = ["", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, row in methods.items():
        cost = row["inference"]
        cells = [name, *(spread_text(row["further"].get(key, {}).get(kind)) for key, kind in shown)]
        cells += [f"{cost['multiply_adds'] / 1e6:.4g}", f"{cost['milliseconds']:.3g}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _paired(compared: Mapping[str, Any], digits: int) -> str:
    interval = interval_text(compared, digits)
    return difference_text(compared, digits) + (f" [{interval}]" if interval else "")


def _context(summary: Mapping[str, Any]) -> str:
    hardware = summary["hardware"]
    device = hardware["gpu"] or f"{hardware['cpu']}, {hardware['threads']} thread(s) a run"
    rows = by_label(summary["runs"])
    several = any(len(strict_rows(run, rows)) > 1 for run, *_ in rows.values())
    against = (
        ", seed by seed, to the strict row that shares the most settings"
        if several
        else " to strict seed by seed"
    )
    scale = f" Smaller than the papers' setting: {summary['scaled_down']}." if summary["scaled_down"] else ""
    return (
        f"{summary['benchmark']}, {summary['model']}; mean ± standard deviation over seeds; paired: "
        f"difference{against}, with a 95 % t interval. Published: the papers' own numbers, on "
        f"other data and hardware.{scale} {recipes_line(summary['runs'])} "
        f"Commit {', '.join(summary['commits'])}; {device}; torch {summary['versions'].get('torch', '?')}."
    )
