"""The tables of a report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from equirelax_lab.report.figures import Numbers, shown
from equirelax_lab.report.rounding import decimals, difference_text, interval_text, spread_text
from equirelax_lab.report.rows import BASELINE, recipes_line
from equirelax_lab.report.runs import Chapter, Run
from equirelax_lab.report.significance import holm, paired_test
from equirelax_lab.report.summary import headline
from equirelax_lab.tasks.registry import base_of, config_from_dict
from equirelax_lab.tasks.task import heading
from equirelax_lab.training.folder import KINDS, differences

Summary = Mapping[str, Any]

RESULTS_NOTE = (
    "The bold number is of the network that the method hands over; folded: layers took over what they can of their "
    "residuals. Difference: to the strict runs with the same seeds and data, with a 95 % t interval; p: two-sided paired t "
    "test of that row alone; Holm: corrected for the number of tests in this table; d: Cohen's d_z, the mean difference in "
    "standard deviations of the differences. With a few seeds p and d are coarse. Published: the papers' own numbers, on "
    "other data and hardware."
)
COST_NOTE = (
    "Seconds per epoch: median over the epochs of a run, mean over seeds; on a machine that others use too they say little. "
    "Multiply-adds and the least time of one prediction, as recorded after training. Projected networks have the strict "
    "network's parameters."
)


def results(summary: Summary) -> Numbers:
    """Means, deviations, paired tests, effect sizes, published numbers."""
    head = (
        "method",
        f"test {heading(summary['metric'])}",
        *KINDS,
        "minus strict",
        "95 % interval",
        "p",
        "p (Holm)",
        "d",
    )
    tests = {name: paired_test(row["paired_with_strict"]) for name, row in summary["methods"].items()}
    corrected = holm({name: test.p for name, test in tests.items() if test is not None})
    rows = []
    for name, row in summary["methods"].items():
        relaxes = row["method"] == BASELINE or row["residuals"] > 0
        compared, test = row["paired_with_strict"], tests[name]
        digits = decimals(row["test"][row["headline"]]["mean"])
        state = row["headline"] if relaxes else "as trained"
        rows.append(
            (
                name,
                f"{spread_text(row['test'][row['headline']])} ({state})",
                *(spread_text(row["test"][kind]) if relaxes else "" for kind in KINDS),
                "" if compared is None else difference_text(compared, digits),
                "" if compared is None else interval_text(compared, digits, " to "),
                "" if test is None else f"{test.p:.2g}",
                f"{corrected[name]:.2g}" if name in corrected else "",
                "" if test is None else f"{test.effect:+.2f}",
                "" if compared is None else f"{compared['wins']} of {compared['count']}",
                row["published"] or "",
            )
        )
    return Numbers((*head, "better seeds", "published"), tuple(rows))


def further(summary: Summary) -> Numbers | None:
    """Spreads of all metrics but the headline; None where there is no other."""
    found = {name: row["further"] for name, row in summary["methods"].items() if row["further"]}
    keys = [
        (key, kind) for key in dict.fromkeys(k for one in found.values() for k in one) for kind in KINDS[:2]
    ]
    if not keys:
        return None
    rows = tuple(
        (name, *(spread_text(one.get(key, {}).get(kind)) for key, kind in keys))
        for name, one in found.items()
    )
    return Numbers(("method", *(f"{key}, {kind}" for key, kind in keys)), rows)


def strengths(summary: Summary) -> Numbers | None:
    """Largest strengths and how far multipliers still moved; None without residuals."""
    rows = []
    for name, row in summary["methods"].items():
        if found := row["strengths"]:
            drift = found["multiplier_drift"]
            peak = found["max_abs_gamma"]
            moved = ("", "") if drift is None else (shown(drift["swing"], 2), f"{drift['relative']:.1%}")
            rows.append((name, shown(peak["largest"], 3), shown(peak["end"], 3), *moved))
    head = ("method", "max |gamma| over training", "after the last epoch")
    moving = ("multipliers: range over the last tenth", "of their size")
    return Numbers((*head, *moving), tuple(rows)) if rows else None


def cost(chapter: Chapter) -> Numbers:
    """Time per epoch and parameters, relaxed and projected; time and arithmetic of a prediction."""
    head = ("method", "parameters (projected)", "in training", "seconds per epoch", "times strict")
    rows = []
    base = _epoch_seconds([run for run in chapter.runs if run.result["method"] == BASELINE])
    for label, runs in chapter.by_label().items():
        own = _epoch_seconds(runs)
        models = {run.result["model"] for run in chapter.runs}
        parameters = [run.result["parameters"] for run in runs if run.finished]
        rows.append(
            (
                label,
                f"{parameters[0]['strict']:,}" if parameters else "",
                f"{parameters[0]['relaxed']:,}" if parameters else "",
                shown(statistics.fmean(own), 3) if own else "",
                f"{statistics.fmean(own) / statistics.fmean(base):.2f}"
                if own and base and len(models) == 1
                else "",
                *(
                    _inference(runs, kind, key)
                    for key in ("multiply_adds", "milliseconds")
                    for kind in KINDS[:2]
                ),
            )
        )
    predicting = [f"{words}, {kind}" for words in ("million multiply-adds", "ms") for kind in KINDS[:2]]
    return Numbers((*head, *predicting), tuple(rows))


def _epoch_seconds(runs: Sequence[Run]) -> list[float]:
    """For every run the median time of an epoch; runs without metrics: the mean, from the whole time."""
    found = []
    for run in runs:
        clock = [0.0, *(float(row["seconds"]) for row in run.rows if row.get("seconds"))]
        steps = [after - before for before, after in pairwise(clock) if after > before]
        if steps:
            found.append(statistics.median(steps))
        elif run.finished and run.result["epochs"]:
            found.append(run.result["seconds"] / run.result["epochs"])
    return found


def _inference(runs: Sequence[Run], kind: str, key: str) -> str:
    """The least over runs; multiply-adds in millions."""
    costs = [run.result["inference"][kind][key] for run in runs if run.finished and "inference" in run.result]
    if not costs:
        return ""
    return shown(min(costs) / (1e6 if key == "multiply_adds" else 1), 4)


def origin(chapter: Chapter, summary: Summary | None) -> Numbers:
    """Benchmark, models, data, code and machine; everything that differed between the runs is listed."""
    results = [run.result for run in chapter.runs]
    rows = [
        ("benchmark", results[0]["benchmark"]),
        ("models", ", ".join(dict.fromkeys(result["model"] for result in results))),
        ("metric", heading(chapter.metric)),
        ("runs", f"{len(chapter.finished)} finished, {len(chapter.runs) - len(chapter.finished)} not"),
    ]
    if summary is not None:
        done = [run.result for run in chapter.finished]
        machines = dict.fromkeys(machine(result["hardware"]) for result in done)
        versions = dict.fromkeys(
            ", ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in done
        )
        rows += [
            ("recipes", recipes_line(done).partition(": ")[2].rstrip(".")),
            ("scaled down", summary["scaled_down"] or "no: the papers' size"),
            ("commits", ", ".join(summary["commits"])),
            ("machine", "; ".join(machines)),
            ("versions", "; ".join(versions)),
        ]
    return Numbers(("what", "value"), tuple(rows))


def machine(hardware: Mapping[str, Any]) -> str:
    """A machine in words."""
    device = f", {hardware['gpu']}" if hardware.get("gpu") else ""
    return f"{hardware['cpu']}{device}, {hardware['cores']} cores, {hardware['threads']} thread(s) a run"


def changed(chapter: Chapter) -> Numbers:
    """For every label what its settings are where they are not the papers'."""
    rows = []
    for label, runs in chapter.by_label().items():
        config = config_from_dict({**runs[0].result["config"], "seed": 0})
        found = differences(base_of(config).to_dict(), config.to_dict())
        rows.append(
            (
                label,
                "; ".join(words.replace(" was ", ": ").replace(" and is now ", " → ") for words in found)
                or "none",
            )
        )
    return Numbers(("method", "papers' value → value here"), tuple(rows))


def runs(chapter: Chapter) -> Numbers:
    """A row for every run: where it is, how far it came, what it gave."""
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
                "finished" if run.finished else "not finished",
                str(epochs),
                str(result.get("selected_epoch", "")),
                shown(result["val"][headline(result["method"])]) if run.finished else "",
                *(shown(test.get(kind)) for kind in KINDS[:2]),
                shown(result.get("seconds"), 4),
                str(result.get("commit", ""))[:10],
            )
        )
    head = ("run", "method", "seed", "state", "epochs", "selected epoch", "validation")
    return Numbers((*head, "test, relaxed", "test, projected", "seconds", "commit"), tuple(rows))
