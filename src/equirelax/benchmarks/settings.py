"""What a run is, as typed settings: every field is a command-line flag, a YAML key and a line of
documentation.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean, write_text

T = TypeVar("T")


@dataclass
class Training:
    """How the weights are fitted.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Samples of one step, over all devices together.
        optimizer: The optimiser of weights, residuals and learnt strengths.
        learning_rate: Its step size (eta_p in ACE).
        weight_decay: L2 term of weights and residuals; strengths (gamma) never decay.
        momentum: Momentum of sgd.
        schedule: Course of the learning rate over epochs: constant, step (times `step_factor` every
            `step_epochs`), or cosine (down to `final_learning_rate` at the end).
        warmup_epochs: Epochs over which the learning rate first rises to its full size, in equal steps.
        step_epochs: See schedule.
        step_factor: See schedule.
        final_learning_rate: See schedule.
        gradient_clip: Largest norm of the gradient; 0 does not clip.
        augment: Move every training batch by a random element of the benchmark's group.
        validate_every: Epochs from one validation to the next; the last epoch is always validated.
        checkpoint_every: Epochs from one resumable checkpoint to the next.
        audit_every: Validations from one measurement of the equivariance error to the next, and at the end; 0 never
            measures during training. It changes nothing else in the run.
    """

    epochs: int = 1000
    batch_size: int = 100
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    momentum: float = 0.0
    schedule: Literal["constant", "step", "cosine"] = "constant"
    step_epochs: int = 20
    step_factor: float = 0.7
    final_learning_rate: float = 0.0
    warmup_epochs: int = 0
    gradient_clip: float = 0.0
    augment: bool = True
    validate_every: int = 5
    checkpoint_every: int = 20
    audit_every: int = 1


@dataclass
class ResidualSettings:
    """The unconstrained residual branches, and where they stand.

    Attributes:
        placement: Name of a placement; it says which modules get a residual and what the residual reads. none for
            networks that have nothing to relax.
        kind: A dense map, a multi-layer perceptron, (a control) a dense map that is itself equivariant, a linear map
            of low rank, or what the placement's residual stream is made of, which none of the settings below change.
        init: Initial weights: zeros, normal (of `std`), or PyTorch's default; of a low-rank map, its second factor.
        std: Standard deviation of the normal initialisation.
        scale: Factor on the initial weights of a perceptron's last layer.
        bias: Whether a dense map has a bias.
        hidden: Hidden width of the perceptron; null takes the placement's own choice.
        layers: Linear layers of the perceptron.
        rank: Rank of a low-rank map; smaller layers take their own size.
    """

    placement: str = "layers"
    kind: Literal["dense", "mlp", "equivariant-dense", "low-rank", "stream"] = "dense"
    init: Literal["zeros", "normal", "default"] = "zeros"
    std: float = 1e-4
    scale: float = 1.0
    bias: bool = False
    hidden: int | None = None
    layers: int = 3
    rank: int = 8


@dataclass
class Strength:
    """What drives the strengths (gamma): no settings of its own here; one subclass for every method."""


@dataclass
class Dataset:
    """Which samples: one subclass for every benchmark."""


@dataclass
class Network:
    """The strict network's size: one subclass for every model."""


@dataclass
class RunConfig:
    """One run: names as on the command line, and the settings behind them."""

    benchmark: str
    model: str
    method: str
    seed: int
    training: Training
    dataset: Dataset
    network: Network
    residual: ResidualSettings
    strength: Strength
    sections: tuple[str, ...] = field(default=("dataset", "network", "residual", "strength"), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain python, in the layout of `config.yaml`: training settings at the top, then the sections."""
        top = {"benchmark": self.benchmark, "model": self.model, "method": self.method, "seed": self.seed}
        top.update(dataclasses.asdict(self.training))
        top.update({name: dataclasses.asdict(getattr(self, name)) for name in self.sections})
        return top

    def updated(self, values: Mapping[str, Any]) -> RunConfig:
        """A copy in which the keys of `values` (layout of `to_dict`) replace this config's.

        Raises:
            ConfigError: an unknown key (with a suggestion), or a value of the wrong type.
        """
        training_keys = [f.name for f in dataclasses.fields(Training)]
        names = ["benchmark", "model", "method", "seed"]
        for key in values:
            if key not in (known := names + training_keys + list(self.sections)):
                raise ConfigError(f"Unknown key '{key}' in the configuration.{did_you_mean(str(key), known)}")
        for name in ("benchmark", "model", "method"):
            if values.get(name, getattr(self, name)) != getattr(self, name):
                raise ConfigError(
                    f"The configuration is for {name} '{values[name]}', not '{getattr(self, name)}'. "
                    f"Give the same {name}, or leave the key out."
                )
        changed: dict[str, Any] = {
            "seed": _coerce(values.get("seed", self.seed), int, "seed"),
            "training": _update(self.training, {k: values[k] for k in training_keys if k in values}, ""),
        }
        for name in self.sections:
            changed[name] = _update(getattr(self, name), values.get(name) or {}, f"{name}.")
        if changed["seed"] < 0:
            raise ConfigError(f"'seed' is {changed['seed']}; expected 0 or more.")
        return dataclasses.replace(self, **changed)

    def write(self, path: Path) -> None:
        """Write `to_dict()` as YAML."""
        write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError` if the file is missing or is not a mapping."""
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} is not YAML: {error}.") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"The configuration file {path} should hold a mapping of keys to values.")
    return loaded


def _update(section: T, values: Any, prefix: str) -> T:
    """A copy of the dataclass `section` with `values` put in, types checked."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"'{prefix.rstrip('.')}' should be a mapping of keys to values, not {values!r}.")
    hints = typing.get_type_hints(type(section))
    for key in values:
        if key not in hints:
            raise ConfigError(f"Unknown key '{prefix}{key}'.{did_you_mean(str(key), list(hints))}")
    return dataclasses.replace(
        section,  # type: ignore[type-var]
        **{key: _coerce(value, hints[key], prefix + key) for key, value in values.items()},
    )


def _coerce(value: Any, hint: Any, key: str) -> Any:
    """`value` if it fits `hint` (an int does where a float is wanted); else a `ConfigError` naming `key`."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value in (options := typing.get_args(hint)):
            return value
        known = [str(option) for option in options]
        raise ConfigError(
            f"'{key}' is {value!r}; choose one of {', '.join(known)}.{did_you_mean(str(value), known)}"
        )
    options = typing.get_args(hint) if origin in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        if option is type(None) and value is None:
            return value
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if (
            isinstance(option, type)
            and isinstance(value, option)
            and not (isinstance(value, bool) and option is int)
        ):
            return value
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise ConfigError(f"'{key}' is {value!r}; expected {names}.")
