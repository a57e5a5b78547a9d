"""A run's checkpoints: the selected weights, and the state that a run resumes from; both are read without running code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import CheckpointError
from equirelax.relaxation.checkpoint import read, write
from equirelax_lab.tasks.registry import config_from_dict
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.tasks.task import Metric
from equirelax_lab.training.assembly import Assembly, assemble
from equirelax_lab.training.folder import BEST, LAST

SELECTED, STATE = "equirelax-run-2", "equirelax-state-3"
"""Formats of `best.ckpt` and of `last.ckpt`."""
FAMILY = ("equirelax-run-", "equirelax-state-")
"""The common beginning of the formats of every version."""
OLDER = "equirelax"
"""A key of the `last.ckpt` of an older version."""


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Torch's random states under their names in checkpoints: "rng", and on a GPU "cuda_rng"."""
    states = {"rng": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda_rng"] = torch.cuda.get_rng_state(device)
    return states


@dataclass(frozen=True)
class Selected:
    """Weights selected on validation, their epoch (from 0), and their validation value."""

    epoch: int
    value: float
    weights: dict[str, Tensor]


class Selection:
    """Keeps the weights that are best on validation, or the last ones.

    Args:
        metric: The metric by which weights are compared.
        rule: "best", or "last" for the latest weights whose value is finite.

    Attributes:
        selected: None before the first finite value.
    """

    def __init__(self, metric: Metric, rule: str) -> None:
        self.metric, self.rule = metric, rule
        self.selected: Selected | None = None

    def consider(self, epoch: int, value: float, model: nn.Module) -> float | None:
        """Take the model's weights if they are better; returns the value of the weights that are now selected."""
        best = self.metric.worst if self.selected is None else self.selected.value
        if self.metric.better(value, best) or (self.rule == "last" and math.isfinite(value)):
            self.selected = Selected(epoch, value, copy_weights(model))
        return None if self.selected is None else self.selected.value

    def state_dict(self) -> dict[str, Any] | None:
        """Plain data and tensors."""
        return None if self.selected is None else _as_dict(self.selected)

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue from `state_dict()`."""
        self.selected = None if state is None else Selected(**state)


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state dict on the CPU."""
    return {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}


def _as_dict(selected: Selected) -> dict[str, Any]:
    return {"epoch": selected.epoch, "value": selected.value, "weights": selected.weights}


def write_selected(path: Path, config: RunConfig, selected: Selected) -> None:
    """Write the selected weights with the settings that rebuild their model."""
    write({"format": SELECTED, "config": config.to_dict(), **_as_dict(selected)}, path)


def write_state(path: Path, config: RunConfig, state: dict[str, Any]) -> None:
    """Write the state that a run resumes from, with its settings."""
    write({"format": STATE, "config": config.to_dict(), **state}, path)


def read_state(path: Path) -> dict[str, Any]:
    """Read what `write_state` wrote.

    Raises:
        CheckpointError: The file is missing or damaged, or another version or program wrote it.
    """
    state = read(path)
    if isinstance(state, dict) and state.get("format") == STATE:
        return state
    raise CheckpointError(_refusal(path, state))


@dataclass(frozen=True)
class StoredRun:
    """The content of a checkpoint: settings, weights, and the number of epochs that these were trained for."""

    config: RunConfig
    weights: Mapping[str, Tensor]
    epochs: int


def read_run(path: Path) -> StoredRun:
    """Read settings and weights from a run's `best.ckpt` or `last.ckpt`, or from its folder.

    Raises:
        CheckpointError: The file is missing or damaged, or `equirelax train` did not write it.
    """
    path = path / BEST if path.is_dir() else path
    state = read(path)
    if not isinstance(state, dict) or state.get("format") not in (SELECTED, STATE):
        raise CheckpointError(_refusal(path, state))
    epochs = state["epoch"] + 1 if state["format"] == SELECTED else state["completed"]
    return StoredRun(config_from_dict(state["config"]), state["weights"], epochs)


def _refusal(path: Path, state: Any) -> str:
    if isinstance(state, dict) and OLDER in state:
        return (
            f"{path} was written by an older version of `equirelax train`, and cannot be read any more. Start the run anew "
            f"in another folder (--out); {BEST} beside it can still be read."
        )
    if isinstance(state, dict) and str(state.get("format")).startswith(FAMILY):
        return (
            f"{path} has the format '{state['format']}', which cannot be read here; expected {SELECTED} ({BEST}) or {STATE} "
            f"({LAST}). If another version of `equirelax train` wrote it, train the run anew in another folder (--out)."
        )
    return (
        f"{path} is a file of tensors, but not one that `equirelax train` wrote. "
        f"Give the {BEST} or {LAST} of a run; equirelax.load(model, path) reads what equirelax.save wrote."
    )


def load_run(path: Path, root: Path | None = None) -> Assembly:
    """Rebuild the model of a run and load its weights, residuals and strengths.

    Raises:
        CheckpointError: The file cannot be read, or its weights do not fit its own settings.
    """
    stored = read_run(path)
    assembly = assemble(stored.config, root)
    load_weights(assembly, stored.weights, str(path))
    return assembly


def load_weights(assembly: Assembly, weights: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict into the model. Raises `CheckpointError`, which names `where`, if it does not fit."""
    try:
        assembly.model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise CheckpointError(
            f"{where}: the weights do not fit the model that its settings describe; was it written by "
            f"another version? {str(error).splitlines()[-1].strip()}"
        ) from error
