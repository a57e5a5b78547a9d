"""Load weights from a file into a network, without running code in the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from equirelax.errors import ConfigError
from equirelax.relaxation.checkpoint import read

WRAPPED = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs keep a state dict."""


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict from a `.safetensors` file or one written by `torch.save`.

    A state dict under one of the keys `WRAPPED` is found there. A prefix that all keys share, such as `module.` or
    `model.`, is dropped if the keys are then those of the network.

    Raises:
        CheckpointError: The file is missing or damaged, or holds more than tensors and plain data.
        ConfigError: The file holds no state dict, or that of another network.
    """
    state = _state_dict(_read(path), path)
    own = network.state_dict()
    if state.keys() != own.keys():
        state = _without_prefix(state, own.keys())
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        words = [
            f"{len(keys)} {what} ({_some(keys)})"
            for keys, what in ((missing, "missing"), (unknown, "too many"))
            if keys
        ]
        raise ConfigError(
            f"--weights {path} is of another network than {type(network).__name__}: keys are {' and '.join(words)}."
        )
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise ConfigError(
                f"--weights {path} is of another network than {type(network).__name__}: {key} has shape {tuple(value.shape)} "
                f"there, and {tuple(own[key].shape)} in the network. Build it with the arguments that it was trained with."
            )
    network.load_state_dict(state)


def _read(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return read(path)
    if not path.is_file():
        raise ConfigError(f"--weights: there is no file {path}.")
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ConfigError(
            "--weights needs the package safetensors for such a file: pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"--weights {path} is damaged, or not a safetensors file: {error}") from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for found in (content, *(content[key] for key in WRAPPED if key in content)):
            if (
                isinstance(found, Mapping)
                and found
                and all(isinstance(value, Tensor) for value in found.values())
            ):
                return {str(key): value for key, value in found.items()}
    raise ConfigError(
        f"--weights {path} holds no state dict, neither at its top level nor as {', '.join(WRAPPED)}: save network.state_dict()."
    )


def _without_prefix(state: dict[str, Tensor], own: Any) -> dict[str, Tensor]:
    """Drop a prefix that all keys of a state dict share, if they are then those of the network."""
    parts = next(iter(state)).split(".")
    for count in range(1, len(parts)):
        prefix = f"{'.'.join(parts[:count])}."
        stripped = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if len(stripped) == len(state) and stripped.keys() == own:
            return stripped
    return state


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
