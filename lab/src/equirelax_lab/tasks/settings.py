"""What a run is, as typed settings: every field is a command-line flag, a YAML key and a line of
documentation. Numbers have ranges (`ranges.py`).

The numbers of the experiments are in the recipes (`equirelax_lab.recipes`) and have no default here; a setting that has one
does nothing there, or what version 0.1 did.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean, write_text
from equirelax_lab.ranges import (
    COUNT,
    COUNT_OR_NONE,
    DEPTH,
    FACTOR,
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    WIDTH,
    check,
    check_fields,
    shown,
    within,
)

T = TypeVar("T")
NAMES = ("benchmark", "model", "method", "recipe", "trained_as")
"""Keys that say which settings a run begins with."""
EARLIER = "0.1"
"""In the place of a variant: the settings of version 0.1, which had no recipes."""
LARGEST_FILE = 100_000
"""Values that a file of settings may hold."""


@dataclass(kw_only=True)
class Training:
    """How the weights are fitted.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Samples of one step, over all devices together.
        optimizer: The optimiser of weights, residuals and learnt strengths. muon orthogonalises the steps of matrices and
            leaves everything else to adam, at adam's learning rates.
        learning_rate: Its step size (eta_p in ACE).
        weight_decay: L2 term of weights and residuals (adamw, muon: decoupled); strengths (gamma) never decay.
        decay_biases: Whether weight decay holds for biases and other parameters of one dimension.
        momentum: Momentum of sgd.
        muon_momentum: Momentum of muon.
        muon_rms: Root mean square of the entries of muon's steps over the learning rate; 1 is that of adam's first step, 0.2
            what language models are trained with.
        schedule: Course of the learning rate over epochs: constant, step (times `step_factor` every
            `step_epochs`), milestones (times `step_factor` at every one of `milestones`), or cosine (down to
            `final_learning_rate` at the end).
        warmup_epochs: Epochs over which the learning rate first rises to its full size, in equal steps.
        step_epochs: See schedule.
        step_factor: See schedule.
        milestones: See schedule: shares of the epochs, such as 0.8 and 0.9.
        final_learning_rate: See schedule.
        gradient_clip: Largest norm of the gradient; 0 does not clip.
        augment: Move every training batch by a random element of the benchmark's group.
        ema: Decay of an average of the weights over training steps, bias-corrected, which is validated, selected and tested
            beside the weights themselves; 0 keeps no average.
        drop_last: Leave out an epoch's last batch where it is smaller than the others.
        select: The weights that are tested: those of the best validation, or the last ones.
        validate_every: Epochs from one validation to the next; the last epoch is always validated.
        checkpoint_every: Epochs from one resumable checkpoint to the next.
        audit_every: Validations from one measurement of the equivariance error to the next, and at the end; 0 never
            measures during training. It changes nothing else in the run.
    """

    epochs: int = within(COUNT)
    batch_size: int = within(COUNT)
    optimizer: Literal["adam", "adamw", "sgd", "muon"] = "adam"
    learning_rate: float = within(POSITIVE)
    weight_decay: float = within(NOT_NEGATIVE, 0.0)
    momentum: float = within(SHARE, 0.0)
    muon_momentum: float = within(SHARE, 0.95)
    muon_rms: float = within(POSITIVE, 1.0)
    decay_biases: bool = True
    schedule: Literal["constant", "step", "milestones", "cosine"] = "constant"
    step_epochs: int = within(COUNT, 20)
    step_factor: float = within(FACTOR, 0.7)
    milestones: list[float] = within(SHARE, [])
    final_learning_rate: float = within(NOT_NEGATIVE, 0.0)
    warmup_epochs: int = within(COUNT_OR_NONE, 0)
    gradient_clip: float = within(NOT_NEGATIVE, 0.0)
    augment: bool = False
    ema: float = within(SHARE, 0.0)
    drop_last: bool = False
    select: Literal["best", "last"] = "best"
    validate_every: int = within(COUNT, 5)
    checkpoint_every: int = within(COUNT, 20)
    audit_every: int = within(COUNT_OR_NONE, 1)


@dataclass(kw_only=True)
class ResidualSettings:
    """The unconstrained residual branches, and where they stand.

    Attributes:
        placement: Name of a placement; it says which modules get a residual and what the residual reads. none for
            networks that have nothing to relax.
        kind: A dense map, a multi-layer perceptron, (a control) a dense map that is itself equivariant, a linear map
            of low rank, one in groups of channels, or what the placement's residual stream is made of, which none of
            the settings below change.
        init: Initial weights: zeros, normal (of `std`), or PyTorch's default; of a low-rank map, its second factor.
        std: Standard deviation of the normal initialisation.
        scale: Factor on the initial weights of a perceptron's last layer.
        bias: Whether a dense map has a bias.
        unbiased: Path patterns of layers whose dense map has none all the same.
        exclude: Path patterns of layers that get no residual.
        hidden: Hidden width of the perceptron, or a list of the widths of all its hidden layers; null takes the
            placement's own choice.
        layers: Linear layers of the perceptron.
        rank: Rank of a low-rank map; smaller layers take their own size.
        groups: Groups of channels of a grouped map, which does not mix them; layers with fewer channels get a dense map.
    """

    placement: str
    kind: Literal["dense", "mlp", "equivariant-dense", "low-rank", "grouped", "stream"] = "dense"
    init: Literal["zeros", "normal", "default"] = "zeros"
    std: float = within(NOT_NEGATIVE, 1e-4)
    scale: float = within(FINITE, 1.0)
    bias: bool = False
    unbiased: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    hidden: int | list[int] | None = within(WIDTH, None)
    layers: int = within(DEPTH, 3)
    rank: int = within(WIDTH, 8)
    groups: int = within(WIDTH, 4)


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
    """One run: names as on the command line, and the settings behind them.

    Attributes:
        recipe: the variant of the recipe that the settings begin with, or `EARLIER` for a run of version 0.1, which had none.
        trained_as: METHOD or METHOD VARIANT whose training settings and data the recipe was given; None: its own.
    """

    benchmark: str
    model: str
    method: str
    seed: int
    training: Training
    dataset: Dataset
    network: Network
    residual: ResidualSettings
    strength: Strength
    recipe: str = "published"
    trained_as: str | None = None
    sections: tuple[str, ...] = field(default=("dataset", "network", "residual", "strength"), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain python, in the layout of `config.yaml`: training settings at the top, then the sections."""
        top: dict[str, Any] = {name: getattr(self, name) for name in (*NAMES, "seed")}
        top.update(dataclasses.asdict(self.training))
        top.update({name: dataclasses.asdict(getattr(self, name)) for name in self.sections})
        return top

    def updated(self, values: Mapping[str, Any]) -> RunConfig:
        """A copy in which the keys of `values` (layout of `to_dict`) replace this config's.

        Raises:
            ConfigError: an unknown key (with a suggestion), or a value of the wrong type or outside of its range.
        """
        training_keys = [f.name for f in dataclasses.fields(Training)]
        for key in values:
            if key not in (known := [*NAMES, "seed"] + training_keys + list(self.sections)):
                raise ConfigError(
                    f"Unknown key {shown(key)} in the configuration.{did_you_mean(str(key), known)}"
                )
        for name in NAMES:
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
        check(changed["seed"], SEED, "'seed'")
        return dataclasses.replace(self, **changed)

    def write(self, path: Path) -> None:
        """Write `to_dict()` as YAML."""
        write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False))


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that is there twice instead of taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping of keys that differ."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for name, count in Counter(names).items():
            if count > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {shown(name)} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, has a key twice, holds too much, or is not a mapping.
    """
    try:
        # the loader builds plain Python values alone, as yaml.safe_load does
        loaded = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error.strerror}.") from error
    except RecursionError as error:
        raise ConfigError(f"The configuration file {path} is nested too deeply.") from error
    # ValueError: bytes that are not UTF-8, dates that do not exist, numbers of thousands of digits
    except (yaml.YAMLError, ValueError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"The configuration file {path} is not YAML: {words}.") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"The configuration file {path} should hold a mapping of keys to values.")
    if _outgrows(loaded, LARGEST_FILE):
        raise ConfigError(
            f"The configuration file {path} holds more than {LARGEST_FILE:,} values, or itself: settings are few."
        )
    return loaded


def _outgrows(loaded: Any, most: int) -> bool:
    """Whether there are more than `most` values, those behind YAML's references counted at every place."""
    waiting, count = [loaded], 0
    while waiting and count <= most:
        value = waiting.pop()
        count += 1
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | set | tuple):
            waiting.extend(value)
    return count > most


def made(kind: type[T], values: Any, prefix: str) -> T:
    """The dataclass `kind` from `values`, types and ranges checked.

    Args:
        kind: of a section of a run's settings. values: key -> value. prefix: of the keys in messages ("network.").

    Raises:
        ConfigError: an unknown key, one without a default that is missing, or a value that does not fit.
    """
    given = _coerced(kind, values, prefix)
    missing = [
        f.name
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]
        if f.name not in given and f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing:
        names = ", ".join(f"'{prefix}{name}'" for name in missing)
        raise ConfigError(f"The settings lack {names}, which have no default.")
    section = kind(**given)
    check_fields(section, f"'{prefix}{{}}'")
    return section


def _update(section: T, values: Any, prefix: str) -> T:
    """A copy of the dataclass `section` with `values` put in, types checked."""
    given = _coerced(type(section), values, prefix)
    updated: T = dataclasses.replace(section, **given)  # type: ignore[type-var]
    check_fields(updated, f"'{prefix}{{}}'")
    return updated


def _coerced(kind: type[Any], values: Any, prefix: str) -> dict[str, Any]:
    """`values` as the fields of the dataclass `kind` want them."""
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"'{prefix.rstrip('.')}' should be a mapping of keys to values, not {shown(values)}."
        )
    hints = _hints(kind)  # type: ignore[arg-type]  # classes can be hashed
    for key in values:
        if key not in hints:
            raise ConfigError(f"Unknown key '{prefix}{key}'.{did_you_mean(str(key), list(hints))}")
    return {key: _coerce(value, hints[key], prefix + key) for key, value in values.items()}


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _coerce(value: Any, hint: Any, key: str) -> Any:
    """`value` if it fits `hint` (an int does where a float is wanted); else a `ConfigError` naming `key`."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value in (options := typing.get_args(hint)):
            return value
        known = [str(option) for option in options]
        raise ConfigError(
            f"'{key}' is {shown(value)}; choose one of {', '.join(known)}.{did_you_mean(str(value), known)}"
        )
    options = typing.get_args(hint) if origin in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        if option is type(None) and value is None:
            return value
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return _as_float(value)
        if typing.get_origin(option) is list and isinstance(value, list):
            (inner,) = typing.get_args(option)
            return [_coerce(each, inner, f"{key}[{i}]") for i, each in enumerate(value)]
        if (
            isinstance(option, type)
            and isinstance(value, option)
            and not (isinstance(value, bool) and option is int)
        ):
            return value
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise ConfigError(f"'{key}' is {shown(value)}; expected {names}.")


def _as_float(value: int) -> float:
    """A whole number as a float; infinity, which no range holds, where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
