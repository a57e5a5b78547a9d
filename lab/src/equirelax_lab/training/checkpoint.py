"""A run's files: resumable checkpoints, selected weights, and reading both back without running code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from equirelax.errors import CheckpointError
from equirelax.relaxation.checkpoint import read, write
from equirelax_lab.tasks.registry import config_from_dict
from equirelax_lab.tasks.settings import RunConfig
from equirelax_lab.training.assembly import Assembly, assemble
from equirelax_lab.training.folder import BEST, LAST

FORMAT = "equirelax-run-2"
KEY = "equirelax"


@dataclass(frozen=True)
class Selected:
    """Weights chosen on validation: of which epoch, and with which value."""

    epoch: int
    value: float
    weights: dict[str, Tensor]

    def to_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""
        return {"epoch": self.epoch, "value": self.value, "weights": self.weights}


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict, copied to the CPU."""
    return {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}


def write_selected(path: Path, config: RunConfig, selected: Selected) -> None:
    """Write the selected weights with the settings that rebuild their model."""
    write({"format": FORMAT, "config": config.to_dict(), **selected.to_dict()}, path)


@dataclass(frozen=True)
class StoredRun:
    """What a checkpoint file holds: settings, weights, and how many epochs these weights were trained for."""

    config: RunConfig
    weights: Mapping[str, Tensor]
    epochs: int


def read_run(path: Path) -> StoredRun:
    """Settings and weights from `best.ckpt` or `last.ckpt` of a run.

    Raises:
        CheckpointError: missing, damaged, or not written by `equirelax train`.
    """
    state = read(path / BEST if path.is_dir() else path)
    if isinstance(state, dict) and state.get("format") == FORMAT:
        return StoredRun(config_from_dict(state["config"]), state["weights"], state["epoch"] + 1)
    if isinstance(state, dict) and isinstance(own := state.get(KEY), dict) and own.get("format") == FORMAT:
        weights = {k.removeprefix("model."): v for k, v in state["state_dict"].items()}
        return StoredRun(config_from_dict(own["config"]), weights, own["completed"])
    raise CheckpointError(
        f"{path} is a file of tensors, but not one that `equirelax train` wrote. "
        f"Give the {BEST} or {LAST} of a run; equirelax.load(model, path) reads what equirelax.save wrote."
    )


def load_run(path: Path, root: Path | None = None) -> Assembly:
    """Rebuild the model of a run and load its weights, residuals and strengths.

    Raises:
        CheckpointError: the file cannot be read, or its weights do not fit its own settings.
    """
    stored = read_run(path)
    assembly = assemble(stored.config, root)
    load_weights(assembly, stored.weights, str(path))
    return assembly


def load_weights(assembly: Assembly, weights: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict into the model. Raises `CheckpointError` naming `where` if it does not fit."""
    try:
        assembly.model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise CheckpointError(
            f"{where}: the weights do not fit the model that its settings describe; was it written by "
            f"another version? {str(error).splitlines()[-1].strip()}"
        ) from error
