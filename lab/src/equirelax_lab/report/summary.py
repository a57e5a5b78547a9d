"""Summarise the tidy table of a comparison: statistics over seeds for every row, compared with its strict row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from equirelax.errors import ConfigError
from equirelax_lab.report.rows import BASELINE, baseline_row, by_label, in_order, settings_that_differ
from equirelax_lab.report.runs import Run
from equirelax_lab.report.statistics import paired, spread
from equirelax_lab.report.table import Table, headline
from equirelax_lab.tasks.registry import build_task, config_from_dict
from equirelax_lab.training.folder import KINDS


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics over seeds for every row, in the order of all tables (see `rows.in_order`), as plain data.

    Args:
        results: Contents of result.json files of one benchmark.

    Raises:
        ConfigError: There are no results, or they are of several benchmarks.
    """
    if not results:
        raise ConfigError("There is no finished run to summarise.")
    if len({r["benchmark"] for r in results}) > 1:
        raise ConfigError("A summary is of one benchmark; the results are of several.")
    results = [results[index] for index in in_order(results)]
    first = results[0]
    rows = by_label(results)
    table = Table([Run("", result, (), "finished") for result in results])
    return {
        "benchmark": first["benchmark"],
        "model": ", ".join(dict.fromkeys(r["model"] for r in results)),
        "metric": first["metric"],
        "methods": {
            name: _row(name, runs, baseline_row(runs[0], rows), table) for name, runs in rows.items()
        },
        "settings_that_differ": settings_that_differ(results),
        "scaled_down": _scaled_down(results),
        "commits": sorted({str(r["commit"]) for r in results}),
        "hardware": first["hardware"],
        "versions": first["versions"],
        "runs": list(results),
    }


def _row(label: str, runs: Sequence[Mapping[str, Any]], strict: str | None, table: Table) -> dict[str, Any]:
    """The row `label`, compared with the row `strict`."""
    method, higher = runs[0]["method"], runs[0]["metric"].get("higher_is_better", False)
    kind = headline(method)
    baseline = {} if strict is None else table.values(strict, "test", "projected")
    compared = None if method == BASELINE else paired(table.values(label, "test", kind), baseline, higher)
    errors = [r["equivariance_error"] for r in runs if r["equivariance_error"] is not None]
    further = list(runs[0].get("metrics", {}).get("test", {}).get("projected", {}))
    return {
        "method": method,
        "model": runs[0]["model"],
        "compared_with": strict,
        "seeds": [r["seed"] for r in runs],
        "headline": kind,
        "residuals": max(len(r["gammas"]) for r in runs),
        "test": {state: _spread(table.values(label, "test", state)) for state in KINDS},
        "val": _spread(table.values(label, "val", kind)),
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
        "seconds": _spread(table.values(label, "seconds")),
        "averaged": _averaged(label, method, strict, table, higher),
        "further": {
            name: {state: _spread(table.values(label, f"test {name}", state)) for state in KINDS[:2]}
            for name in further
            if name != runs[0]["metric"]["name"]
        },
        "inference": {
            name: min(table.values(label, name, kind).values()) for name in ("multiply_adds", "milliseconds")
        }
        if table.values(label, "milliseconds", kind)
        else None,
        "strengths": strengths_of(runs),
    }


def _spread(values: Mapping[int, float]) -> dict[str, Any] | None:
    return asdict(spread(list(values.values()))) if values else None


def _averaged(
    label: str, method: str, strict: str | None, table: Table, higher: bool
) -> dict[str, Any] | None:
    """Test errors of averaged weights, and how they differ from the strict row's; None without averaged weights."""
    kind = headline(method)
    found = table.values(label, "averaged test", kind)
    if not found:
        return None
    baseline = {} if strict is None else table.values(strict, "averaged test", "projected")
    compared = None if method == BASELINE else paired(found, baseline, higher)
    return {
        "decays": sorted(set(table.values(label, "averaged decay").values())),
        "test": {state: _spread(table.values(label, "averaged test", state)) for state in KINDS[:2]},
        "paired_with_strict": None if compared is None else compared.to_dict(),
    }


def strengths_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The worst values over the runs of one row: max abs(gamma) over training and after the last epoch, and how far the
    multipliers moved over the last tenth of training (see `training.dynamics`); for every run also the first epoch at which its
    projected network lagged (0: never), if its version recorded that. None without residuals, and for results of versions
    that recorded none of this.
    """
    found = [run["dynamics"] for run in runs if run.get("dynamics")]
    if not found:
        return None
    drifts = [one["drift"]["multiplier"] for one in found if "multiplier" in one["drift"]]
    return {
        "max_abs_gamma": {key: max(one["max_abs_gamma"][key] for one in found) for key in ("largest", "end")},
        "multiplier_drift": {
            key: max(drift[key] for drift in drifts) for key in ("change", "swing", "relative")
        }
        if drifts
        else None,
        "lag": [run["lag"] or 0 for run in runs if run.get("dynamics") and "lag" in run],
    }


def _published(label: str, run: Mapping[str, Any]) -> str | None:
    """The published value of a run's model and method; a variant of their settings has none."""
    if label not in (run["method"], f"{run['method']} {run['model']}"):
        return None
    return build_task(config_from_dict(run["config"])).published().get(run["method"])


def _scaled_down(results: Sequence[Mapping[str, Any]]) -> str | None:
    """Describe where the runs are smaller than the papers' setting: what all models share, then what differs by model."""
    by_model = {r["model"]: (r["scaled_down"] or "").split("; ") for r in results}
    lists = list(by_model.values())
    shared = [part for part in lists[0] if part and all(part in parts for parts in lists)]
    found = ["; ".join(shared)]
    for model, parts in by_model.items():
        own = [part for part in parts if part and part not in shared]
        found += [f"{model}: {', '.join(own)}"] if own else []
    return "; ".join(filter(None, found)) or None
