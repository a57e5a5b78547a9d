"""What strengths and multipliers did in the runs of a comparison: do they vanish, do they still move?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def strengths_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Over the runs of one method, the worst of each: max abs(gamma) over training and after the last epoch, and how
    far the multipliers moved over the last tenth of training (see `training.dynamics`). None without residuals, and
    for results that do not say.
    """
    found = [run["dynamics"] for run in runs if run.get("dynamics")]
    if not found:
        return None
    drifts = [one["drift"]["multiplier"] for one in found if "multiplier" in one["drift"]]
    return {
        "max_abs_gamma": {key: max(one["max_abs_gamma"][key] for one in found) for key in ("largest", "end")},
        "multiplier_drift": (
            {key: max(drift[key] for drift in drifts) for key in ("change", "swing", "relative")}
            if drifts
            else None
        ),
    }


def strengths_table(summary: Mapping[str, Any]) -> str:
    """Markdown: a row for every method with residuals; empty if there is none."""
    rows = [(name, row["strengths"]) for name, row in summary["methods"].items() if row.get("strengths")]
    if not rows:
        return ""
    head = (
        "method",
        "max abs(gamma) over training",
        "after the last epoch",
        "multipliers: range over the last tenth",
        "of their size",
    )
    lines = ["", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, found in rows:
        peak, drift = found["max_abs_gamma"], found["multiplier_drift"]
        moved = ("", "") if drift is None else (f"{drift['swing']:.2g}", f"{drift['relative']:.1%}")
        lines.append(f"| {name} | {peak['largest']:.3g} | {peak['end']:.3g} | {moved[0]} | {moved[1]} |")
    return "\n".join(lines) + "\n"


def spikes_note(summary: Mapping[str, Any]) -> str:
    """A line for every run whose training loss jumped and stayed up for some epochs; empty where none did."""
    lines = [
        f"- {run['method']} {run['model']} seed {run['seed']}: the training loss rose from {one['before']:.2g} to "
        f"{one['largest']:.2g} (epochs {one['first']:.0f} to {one['last']:.0f})"
        for run in summary["runs"]
        for one in run.get("loss_spikes", ())
    ]
    return "\n" + "\n".join(["Losses that rose a thousandfold:", "", *lines]) + "\n" if lines else ""
