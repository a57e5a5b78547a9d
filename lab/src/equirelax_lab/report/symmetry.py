"""How strongly a run's data break the symmetry, residual by residual: table and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from equirelax.auditing.bounds import NetworkBounds
from equirelax.auditing.breaking import Breaking
from equirelax_lab.report.numbers import Numbers
from equirelax_lab.tasks.methods import choice
from equirelax_lab.training.dynamics import courses, dynamics

STILL = 0.05
"""Multipliers "hardly move" if they change by less than this share of their size over the last tenth of training."""
ALIKE = 0.9
"""Values whose ratio is above this do not tell layers apart."""
ROUNDING = 1e-6
"""Relative errors below this are rounding: constants of models built in float32 reach 1e-7."""

Rows = Sequence[Mapping[str, str]]


def symmetry_study(
    result: Mapping[str, Any],
    rows: Rows,
    measured: Sequence[Breaking] | None,
    bounds: NetworkBounds | None,
    samples: int,
) -> dict[str, Any]:
    """Collect everything that is known about the residuals of a run, as plain data.

    Args:
        result: Content of its result.json, which must have residuals (`gammas`).
        rows: Rows of its metrics.csv.
        measured: How much every residual breaks at the selected weights; None if these were not kept.
        bounds: Bounds of the network; None if the selected weights were not kept.
        samples: Number of group elements drawn for `measured`.

    Returns:
        The run's names, `equivariance_error`, `dynamics` (see `training.dynamics`), `bounds`, and `residuals`: for each
        residual gamma, slack and multiplier at the selected epoch, the same after the last epoch under `end`, and what was
        measured (None: n/a).
    """
    found = courses(rows)
    epochs = [int(row["epoch"]) + 1 for row in rows]
    at = epochs.index(result["selected_epoch"]) if result["selected_epoch"] in epochs else len(rows) - 1
    by_key = {one.key: one.to_dict() for one in measured or ()}
    residuals = []
    for key, gamma in result["gammas"].items():
        row: dict[str, Any] = {**by_key.get(key, dict.fromkeys(_MEASURED)), "key": key, "gamma": gamma}
        for kind in ("slack", "multiplier"):
            row[kind] = found[kind][key][at] if key in found.get(kind, {}) else None
        row["end"] = {kind: several[key][-1] for kind, several in found.items() if key in several}
        residuals.append(row)
    return {
        "benchmark": result["benchmark"],
        "model": result["model"],
        "method": result["method"],
        "seed": result["seed"],
        "epochs": result["epochs"],
        "selected_epoch": result["selected_epoch"],
        "deployed": "relaxed" if choice(result["method"]).deploys_relaxed else "projected",
        "scaled_down": result["scaled_down"],
        "samples": samples if measured is not None else None,
        "equivariance_error": result["equivariance_error"],
        "dynamics": dynamics(rows),
        "bounds": bounds
        and {"reason": bounds.reason, "equivariance": bounds.equivariance, "projection": bounds.projection},
        "residuals": residuals,
    }


_MEASURED = ("type", "relaxes", "weight", "size", "share", "added", "bound", "reason", "alone")


_MEASURED_TITLES = {
    "weight": "norm of W",
    "size": "abs(gamma) x norm of W",
    "share": "share of the output",
    "added": "error added",
    "bound": "bound on it",
    "alone": "error of the output, this one alone",
}


def symmetry_table(study: Mapping[str, Any]) -> Numbers:
    """The residuals as a table."""
    slack = any(row["slack"] is not None for row in study["residuals"])
    price = any(row["multiplier"] is not None for row in study["residuals"])
    measured = _MEASURED_TITLES if study["samples"] is not None else {}
    head = ["residual", "relaxes", "gamma", *["slack u"] * slack, *["multiplier"] * price, *measured.values()]
    rows = []
    for row in study["residuals"]:
        cells = [name_of(row), row["relaxes"] or "", _number(row["gamma"])]
        cells += [_number(row["slack"])] * slack + [_number(row["multiplier"])] * price
        rows.append((*cells, *(_number(row[name]) for name in measured)))
    return Numbers("Symmetry, residual by residual", tuple(head), tuple(rows))


def deployed(study: Mapping[str, Any]) -> str:
    """State how exactly the deployed form keeps the symmetry, then the other form: a reader's first question."""
    error, form = study["equivariance_error"], study["deployed"]
    selected = f"Selected at epoch {study['selected_epoch']} of {study['epochs']}."
    name = "with its residuals" if form == "relaxed" else "projected"
    if error is None:
        return f"Deployed {name}. {selected}"
    keys = ("before", "after") if form == "relaxed" else ("after", "before")
    own, other = (error[key] for key in keys)
    exact = f", exact to rounding in {error['dtype']}" if own < ROUNDING else ""
    elsewhere = "Projected" if form == "relaxed" else "As it is trained, with its residuals,"
    return (
        f"Deployed {name}: the relative equivariance error of the output under {error['group']} is {own:.1e}{exact}. "
        f"{elsewhere} it is {other:.1e}. {selected}"
    )


def findings(study: Mapping[str, Any]) -> list[str]:
    """State in a few sentences what else the numbers show, and no more."""
    return [line for line in (_course(study), _who(study), _layer_bounds(study), _network(study)) if line]


def _course(study: Mapping[str, Any]) -> str:
    found = study["dynamics"]
    peak, drift = found["max_abs_gamma"], found["drift"]
    text = f"max abs(gamma): {peak['largest']:.3g} over training, {peak['end']:.3g} after the last epoch."
    if "multiplier" not in drift:
        return (
            f"{text} This method has no multipliers: its gamma is set, not learnt from the data."
            if _set(study)
            else text
        )
    one, window = drift["multiplier"], found["window"]
    if one["relative"] < STILL:
        # An orbit is slow at its turning points: a tenth of a run cannot show that it has ended.
        verdict = "they hardly move there, which is no proof that they have converged"
    elif one["relative"] > 1:  # values of both signs
        verdict = "they go around zero"
    else:
        verdict = "they still move"
    return (
        f"{text} Over the last tenth of training (epochs {window['first']} to {window['last']}) the multipliers "
        f"change by at most {one['change']:.2g} and range over {one['swing']:.2g}, {one['relative']:.1%} of their "
        f"size: {verdict}."
    )


def _set(study: Mapping[str, Any]) -> bool:
    return study["dynamics"]["drift"].keys() == {"gamma"}


def _who(study: Mapping[str, Any]) -> str:
    """Name the residual that breaks the symmetry most, and state whether gamma alone would have named another."""
    rows = study["residuals"]
    measured = [row for row in rows if row["alone"] is not None]
    if not measured:
        return "The selected weights (best.ckpt) are not in the run's folder: sizes and errors were not measured."
    worst = max(measured, key=lambda row: row["alone"])
    if worst["alone"] < ROUNDING:
        return "At the selected weights no residual breaks the symmetry measurably."
    text = f"{name_of(worst)} breaks it most: alone it gives the output an error of {worst['alone']:.1e}."
    by_gamma = max(measured, key=lambda row: abs(row["gamma"]))
    if abs(worst["gamma"]) < ALIKE * abs(by_gamma["gamma"]):
        text += f" gamma alone would have named {name_of(by_gamma)} ({by_gamma['gamma']:.3g}, error {by_gamma['alone']:.1e})."
    priced = [row for row in measured if row["multiplier"] is not None and row["slack"] is not None]
    if priced:
        dear = max(priced, key=lambda row: row["multiplier"])
        least = min(row["multiplier"] for row in priced)
        if least >= ALIKE * dear["multiplier"]:
            text += (
                f" The multipliers name no layer: they are alike ({least:.3g} to {dear['multiplier']:.3g})."
            )
        else:
            text += (
                f" The largest multiplier, what the symmetry costs the data, is that of {name_of(dear)} "
                f"({dear['multiplier']:.3g}, slack {dear['slack']:.3g}; the smallest is {least:.3g})."
            )
    return text


def _layer_bounds(study: Mapping[str, Any]) -> str:
    reasons: dict[str, list[str]] = {}
    for row in study["residuals"]:
        if row["reason"]:
            reasons.setdefault(row["reason"], []).append(name_of(row))
    parts = [f"{_listed(names, len(study['residuals']))}: {reason}" for reason, names in reasons.items()]
    return f"Bounds n/a: {'; '.join(parts)}." if parts else ""


def _listed(names: Sequence[str], count: int) -> str:
    if len(names) == count:
        return "all residuals"
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _network(study: Mapping[str, Any]) -> str:
    bounds = study["bounds"]
    if bounds is None:
        return ""
    if bounds["reason"]:
        return f"Bound on the whole network (ACE section 4): n/a: {bounds['reason']}."
    return (
        f"Bounds on the whole network (ACE section 4), over the norm of the input: equivariance error "
        f"{bounds['equivariance']:.3g}, distance to the projected network {bounds['projection']:.3g}."
    )


def page(study: Mapping[str, Any], title: str, again: str) -> str:
    """The Markdown page of a run, which the command `again` writes again."""
    said = "\n".join(f"- {line}" for line in findings(study))
    return (
        f"# {title}\n\n**{deployed(study)}**\n\n{symmetry_table(study).markdown()}\n{said}\n\n{_legend(study)}\n\n"
        f"Written by `{again}`.\n"
    )


def _legend(study: Mapping[str, Any]) -> str:
    drawn = (
        ""
        if study["samples"] is None
        else f" Errors are the largest over {study['samples']} group elements, in float64."
    )
    return (
        "gamma, slack and multiplier at the selected epoch. Norm of W: largest singular value of a dense residual, "
        "product of those of its layers for a perceptron (an upper bound), from the model's input on for a stream. "
        "gamma alone misleads, for it can be traded for W. Share of the output: norm of what the residual adds over "
        "that of what comes out. Error added: how far what it adds is from transforming as it should, over the same "
        f"norm, the other residuals off.{drawn} n/a: not defined, or the assumptions of the bound fail."
    )


def name_of(row: Mapping[str, Any]) -> str:
    return row["key"] or "(model)"


def _number(value: float | None) -> str:
    return "n/a" if value is None or value != value else "0" if value == 0 else f"{value:.2g}"
