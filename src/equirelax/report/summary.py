"""From the result.json of many runs to one summary, and a table of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from equirelax.benchmarks.registry import build_task, config_from_dict
from equirelax.benchmarks.strengths import choice
from equirelax.benchmarks.task import heading
from equirelax.errors import ConfigError
from equirelax.report.rounding import decimals, difference_text, interval_text, spread_text
from equirelax.report.statistics import paired, spread
from equirelax.report.strengths import spikes_note, strengths_of, strengths_table
from equirelax.report.variants import BASELINE, baseline_of, labels, method_of
from equirelax.training.folder import KINDS

EXACT = 1e-9
"""Largest relative equivariance error, in float64, of what is called exactly equivariant."""


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
    models = list(dict.fromkeys(r["model"] for r in results))
    methods = {}
    named = labels(results)
    for name in dict.fromkeys(named):
        runs = [r for label, r in zip(named, results, strict=True) if label == name]
        methods[name] = _method(method_of(name), runs, baseline_of(runs, results), _published(name, runs[0]))
    return {
        "benchmark": first["benchmark"],
        "model": ", ".join(models),
        "metric": first["metric"],
        "methods": methods,
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
    name: str,
    runs: Sequence[Mapping[str, Any]],
    strict_runs: Mapping[int, Mapping[str, Any]],
    published: str | None,
) -> dict[str, Any]:
    kind = headline(name)
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
        "seeds": [r["seed"] for r in runs],
        "headline": kind,
        "residuals": max(len(r["gammas"]) for r in runs),
        "test": tests,
        "val": asdict(spread([r["val"][kind] for r in runs])),
        "paired_with_strict": None if compared is None else compared.to_dict(),
        "published": published,
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


def conclusion(summary: Mapping[str, Any]) -> str:
    """One sentence on what the comparison shows, no more than it does; of several models, on the first that was
    trained with several methods.
    """
    every = list(summary["methods"].values())
    first = next((row for row in every if row["paired_with_strict"]), every[0])["model"]
    methods = {name: row for name, row in summary["methods"].items() if row["model"] == first}
    compared = {name: row["paired_with_strict"] for name, row in methods.items() if row["paired_with_strict"]}
    if not compared:
        return "There is nothing to compare: a strict run and another with the same seed are needed."
    higher = summary["metric"].get("higher_is_better", False)
    name, best = (max if higher else min)(compared.items(), key=lambda item: item[1]["mean"])
    strict = methods[name]["strict"]
    side = "below" if best["mean"] < 0 else "above"
    size = f"{abs(best['mean']):.2f} points" if higher else f"{abs(best['mean']) / strict:.0%}"
    change = f"{size} {side} strict"
    what = summary["metric"]["name"] if higher else "error"
    best_kind, state = "best relaxed method here", f" after projection back to {_network(methods[name])}"
    if not methods[name]["residuals"]:
        best_kind, state = "best method here beside strict", ""
    elif methods[name]["headline"] == "relaxed":
        state = " keeping its residuals"
    interval = best["interval"]
    if interval is None:
        sure = "from one seed, which is no evidence of a difference"
    elif interval[0] <= 0 <= interval[1]:
        sure = f"a difference that {best['count']} seeds do not tell from chance"
    else:
        sure = f"with a 95 % interval of the paired difference that excludes zero ({best['count']} seeds)"
    return f"The {best_kind} is {name}: its test {what}{state} is {change}, {sure}."


def _network(row: Mapping[str, Any]) -> str:
    """What a method's networks are projected to: one that relaxes its own layers (RSteer, RPP) stays what it is."""
    error = row["equivariance_error"]
    exact = error is not None and error["after"] <= EXACT
    return "an exactly equivariant network" if exact else "the network as its author made it"


def _paired(compared: Mapping[str, Any], digits: int) -> str:
    interval = interval_text(compared, digits)
    return difference_text(compared, digits) + (f" [{interval}]" if interval else "")


def _context(summary: Mapping[str, Any]) -> str:
    hardware = summary["hardware"]
    device = hardware["gpu"] or f"{hardware['cpu']}, {hardware['threads']} thread(s) a run"
    scale = f" Smaller than the papers' setting: {summary['scaled_down']}." if summary["scaled_down"] else ""
    return (
        f"{summary['benchmark']}, {summary['model']}; mean ± standard deviation over seeds; paired: "
        "difference to strict seed by seed, with a 95 % t interval. Published: the papers' own numbers, on "
        f"other data and hardware.{scale} "
        f"Commit {', '.join(summary['commits'])}; {device}; torch {summary['versions'].get('torch', '?')}."
    )
