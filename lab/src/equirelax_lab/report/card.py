"""The model card of a projected network: what it is, how it was trained, how equivariant it is, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from equirelax import __version__
from equirelax.auditing import AuditReport, card
from equirelax.errors import ConfigError
from equirelax_lab.report.rows import shown
from equirelax_lab.tasks.registry import named
from equirelax_lab.tasks.task import heading
from equirelax_lab.training.assembly import Assembly
from equirelax_lab.training.folder import LAST, RESULT, read_run_result

LOAD = """\
```python
import json

from equirelax_lab.tasks.registry import build_task, config_from_dict
from safetensors import safe_open
from safetensors.torch import load_file

with safe_open("{weights}", "pt") as file:
    config = config_from_dict(json.loads(file.metadata()["config"]))
model = build_task(config).build_model()
model.load_state_dict(load_file("{weights}"))
model.eval()
```"""


def run_card(
    assembly: Assembly, checkpoint: Path, weights: str, mode: str, audited: AuditReport | str
) -> str:
    """Compose the card, in Markdown.

    Args:
        assembly: The run, whose model is projected.
        checkpoint: The run's folder, or its checkpoint with the result beside it.
        weights: Name of the file of weights that the card describes.
        mode: How it was projected, "drop" or "fold"; ignored for a run without residuals.
        audited: The report of the projected model, or why it was not measured.
    """
    config, task = assembly.config, assembly.task
    relaxes = assembly.relaxation is not None
    model = type(assembly.model).__name__
    result, why = _result(checkpoint)
    recipe = named(config)
    rows = [
        ("benchmark", f"{config.benchmark}: {task.title}"),
        ("scaled down", task.scaled_down()),
        ("method", config.method),
        ("recipe", f"{config.model}, {recipe['variant']}" + _trained_as(recipe)),
        ("settings that are not the recipe's", _changed(recipe)),
        ("seed", str(config.seed)),
    ]
    rows += _of_result(result, mode if relaxes else None) if result else [("result", why)]
    how = (
        "with its residuals " + ("folded in as far as possible" if mode == "fold" else "dropped")
        if relaxes
        else ""
    )
    lines = [
        f"# {model}, {config.benchmark}" + (", projected" if relaxes else ""),
        "",
        f"`{weights}` holds the weights of `{type(assembly.model).__module__}.{model}`"
        + (
            f", trained relaxed and projected {how}: the author's network, as if it had never been relaxed."
            if relaxes
            else ", which had nothing to project."
        ),
        f"It has {assembly.strict_parameters:,} parameters"
        + (f" ({assembly.relaxed_parameters:,} while it was relaxed)." if relaxes else "."),
        "",
        "## Training",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {_cell(value)} |" for name, value in rows if value),
        "",
        card(audited)
        if isinstance(audited, AuditReport)
        else f"## Equivariance\n\nNot measured: {audited}\n",
        "## Load it",
        "",
        LOAD.format(weights=weights),
        "",
        f"Written by `equirelax project`, equirelax {__version__}.",
    ]
    return "\n".join(lines) + "\n"


def _result(checkpoint: Path) -> tuple[dict[str, Any] | None, str]:
    """The result of a run's selected weights, or why there is none."""
    if checkpoint.name == LAST:
        return None, f"these are the last weights ({LAST}), which are not tested"
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / RESULT
    if not path.exists():
        return None, "the run is not finished"
    try:
        return read_run_result(path), ""
    except ConfigError as error:
        return None, str(error)


def _of_result(result: dict[str, Any], mode: str | None) -> list[tuple[str, str]]:
    kind = {"drop": "projected", "fold": "folded", None: "relaxed"}[mode]
    metric, value = result["metric"], result["test"][kind]
    hardware, versions = result["hardware"], result["versions"]
    return [
        ("weights of epoch", f"{result['selected_epoch']} of {result['epochs']}"),
        (f"test {heading(metric)}", "" if value is None else f"{value:.4g}"),
        ("trained on", ", ".join(str(hardware[key]) for key in ("gpu", "cpu") if hardware.get(key))),
        ("training took", f"{result['seconds']:,.0f} s"),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
        ("commit", result["commit"] or ""),
    ]


def _trained_as(recipe: dict[str, Any]) -> str:
    return f", trained as {recipe['trained_as']}" if recipe["trained_as"] else ""


def _changed(recipe: dict[str, Any]) -> str:
    """The settings in words: epochs 2 instead of 100."""
    changes = recipe["changed"].items()
    return ", ".join(f"{key} {shown(one['here'])} instead of {shown(one['recipe'])}" for key, one in changes)


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
