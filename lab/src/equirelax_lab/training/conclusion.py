"""The end of a run: the selected weights are tested and audited, and result.json is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from equirelax.auditing import audit
from equirelax.errors import NonFiniteError
from equirelax.files import write_text
from equirelax.relaxation import project
from equirelax_lab.data import Samples
from equirelax_lab.tasks.registry import named
from equirelax_lab.training import provenance
from equirelax_lab.training.assembly import Assembly
from equirelax_lab.training.checkpoint import Selected, load_weights, write_selected
from equirelax_lab.training.cost import inference_cost
from equirelax_lab.training.dynamics import dynamics, first_lag, loss_spikes, read_metrics
from equirelax_lab.training.epoch_end import EpochEnd
from equirelax_lab.training.evaluation import evaluate_all, headline_of
from equirelax_lab.training.folder import BEST, BEST_AVERAGE, METRICS, RESULT


def conclude(
    assembly: Assembly, end: EpochEnd, val: Samples, folder: Path, commit: str | None, members: int = 1
) -> dict[str, Any]:
    """Take the selected weights, read the test set once, audit, and write the result.

    Args:
        assembly: The run's objects; the model is projected.
        end: The run's `EpochEnd`, which holds the selected weights.
        val: Validation samples.
        folder: The run's folder.
        commit: The commit that it was trained with.
        members: Number of runs in its stack, which is recorded in the result.

    Raises:
        NonFiniteError: No validation had a finite value.
    """
    config, task = assembly.config, assembly.task
    selected = end.selection.selected
    if selected is None:
        raise NonFiniteError(
            "No validation had a finite value: there is nothing to select. Lower learning_rate."
        )
    assembly.model.to("cpu")
    test = task.load("test")
    average = end.average_selection.selected
    averaged = average and _tested(assembly, average, val, test, folder / BEST_AVERAGE)
    tested = _tested(assembly, selected, val, test, folder / BEST)
    rows = read_metrics(folder / METRICS, config.training.epochs)
    result = {
        "benchmark": config.benchmark,
        "model": config.model,
        "method": config.method,
        "seed": config.seed,
        "recipe": named(config),
        "metric": task.metric.to_dict(),
        "val": tested["val"],
        "test": tested["test"],
        "metrics": tested["metrics"],
        "averaged": averaged and {"decay": config.training.ema, **averaged},
        "conditions": {
            name: evaluate_all(assembly, change(test)) for name, change in task.conditions().items()
        },
        "inference": inference_cost(assembly, test),
        "equivariance_error": equivariance_error(assembly),
        "parameters": {"strict": assembly.strict_parameters, "relaxed": assembly.relaxed_parameters},
        "epochs": config.training.epochs,
        "selected_epoch": tested["selected_epoch"],
        "gammas": tested["gammas"],
        "dynamics": dynamics(rows),
        "loss_spikes": loss_spikes(rows),
        "lag": first_lag(rows),
        "scaled_down": task.scaled_down(),
        "seconds": round(end.seconds, 1),
        "commit": commit,
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
        "config": config.to_dict(),
    }
    if members > 1:
        result["stacked"] = members
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def _tested(
    assembly: Assembly, selected: Selected, val: Samples, test: Samples, path: Path
) -> dict[str, Any]:
    """Write the selected weights to `path`, load them, and measure them on both sets."""
    write_selected(path, assembly.config, selected)
    load_weights(assembly, selected.weights, str(path))
    val_values, test_values = evaluate_all(assembly, val), evaluate_all(assembly, test)
    return {
        "val": headline_of(assembly.task, val_values),
        "test": headline_of(assembly.task, test_values),
        "metrics": {"val": val_values, "test": test_values},
        "selected_epoch": selected.epoch + 1,
        "gammas": strengths(assembly),
    }


def strengths(assembly: Assembly) -> dict[str, float]:
    """Residual -> gamma."""
    if assembly.relaxation is None:
        return {}
    return dict(zip(assembly.relaxation.residuals, assembly.relaxation.gammas().tolist(), strict=True))


def equivariance_error(assembly: Assembly) -> dict[str, Any] | None:
    """The relative equivariance error in float64 before and after projection, which this function performs.

    Returns:
        {before, after, group, dtype}; None if the task's group does not act exactly on its samples.
    """
    if not assembly.task.auditable:
        return None
    case = assembly.task.audit_case()

    def measure() -> float:
        report = audit(
            assembly.model,
            case.sample,
            case.in_rep,
            case.out_rep,
            case.group,
            seed=0,
            per_layer=False,
            lie=False,
        )
        return float(report.relative)

    with case.headed(assembly.model):
        before = measure()
        after = before
        if assembly.relaxation is not None:
            project(assembly.model)
            after = measure()
    return {"before": before, "after": after, "group": case.group.name, "dtype": "float64"}
