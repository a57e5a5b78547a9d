"""The settings of a run: every field is a flag of the command line, a key of config.yaml and a line of documentation.

The numbers of the experiments are in the recipes (`equirelax_lab.recipes`) and have no default here. A default switches its
setting off, or keeps the behaviour of version 0.1.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from equirelax.errors import ConfigError, EquirelaxError
from equirelax.files import did_you_mean, write_text
from equirelax.relaxation import kinds
from equirelax.relaxation.kinds import Dense, ResidualKind
from equirelax.settings import (
    COUNT,
    COUNT_OR_NONE,
    DEGREE,
    DEPTH,
    FACTOR,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    WIDTH,
    Range,
    Settings,
    shown,
    types_of,
    within,
)
from equirelax_lab.recipes.recipe import SECTIONS

NAMES = ("benchmark", "model", "method", "recipe", "trained_as")
"""Keys that say which settings a run starts from."""
EARLIER = "0.1"
"""The variant of runs of version 0.1, which had no recipes."""
LARGEST_FILE = 100_000
"""The most values that a file of settings may hold."""


@dataclass(frozen=True, kw_only=True)
class Muon(Settings):
    """Settings of the optimiser muon, which orthogonalises the steps of matrices and leaves all other parameters to adam, at
    adam's learning rates.

    Attributes:
        muon_momentum: Momentum of muon.
        muon_rms: Root mean square of the entries of muon's steps over the learning rate; 1 is that of adam's first step, 0.2
            is usual for language models.
    """

    muon_momentum: float = within(SHARE, 0.95)
    muon_rms: float = within(POSITIVE, 1.0)


@dataclass(frozen=True, kw_only=True)
class LearningRate(Settings):
    """The learning rate and its course over the epochs.

    Attributes:
        learning_rate: Step size of the optimiser (eta_p in ACE).
        schedule: constant, step (times `step_factor` every `step_epochs`), milestones (times `step_factor` at each of
            `milestones`), or cosine (down to `final_learning_rate` at the end).
        step_epochs: Epochs between two steps of the schedule step.
        step_factor: Factor of the schedules step and milestones.
        milestones: Shares of the epochs at which the schedule milestones steps, such as 0.8 and 0.9.
        final_learning_rate: Learning rate at the end of the schedule cosine.
        hold: Share of the epochs before the schedule cosine begins to fall.
        restart_epochs: Epochs after which the schedule cosine starts again at its full size (warm restarts); null: never.
        warmup_epochs: Epochs over which the learning rate first rises to its full size, in equal steps.
    """

    learning_rate: float = within(POSITIVE)
    schedule: Literal["constant", "step", "milestones", "cosine"] = "constant"
    step_epochs: int = within(COUNT, 20)
    step_factor: float = within(FACTOR, 0.7)
    milestones: list[float] = within(SHARE, [])
    final_learning_rate: float = within(NOT_NEGATIVE, 0.0)
    hold: float = within(SHARE, 0.0)
    restart_epochs: int | None = within(COUNT, None)
    warmup_epochs: int = within(COUNT_OR_NONE, 0)


@dataclass(frozen=True, kw_only=True)
class Protocol(Settings):
    """What is measured during training, and which weights are tested.

    Attributes:
        ema: Decay of an average of the weights over training steps, bias-corrected, which is validated, selected and tested
            along with the weights themselves; 0 keeps no average.
        select: The weights that are tested: those of the best validation, or the last ones.
        validate_every: Epochs from one validation to the next; the last epoch is always validated.
        checkpoint_every: Epochs from one resumable checkpoint to the next.
        audit_every: Validations from one measurement of the equivariance error to the next, and one at the end; 0 never
            measures during training. It changes nothing else in the run.
    """

    ema: float = within(SHARE, 0.0)
    select: Literal["best", "last"] = "best"
    validate_every: int = within(COUNT, 5)
    checkpoint_every: int = within(COUNT, 20)
    audit_every: int = within(COUNT_OR_NONE, 1)


@dataclass(frozen=True, kw_only=True)
class Training(Protocol, Muon, LearningRate):
    """How the weights are fitted.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Samples of one step, over all devices together.
        optimizer: The optimiser of weights, residuals and learnt strengths.
        residual_rate: Learning rate of the residuals' weights over that of all other parameters.
        projected_share: Share s of the projected network's loss on the same batch in the objective
            (1 - s) L(gamma) + s L(0); 0 does not compute it.
        weight_decay: L2 term of weights and residuals (adamw, muon: decoupled); strengths (gamma) never decay.
        decay_biases: Whether weight decay applies to biases and to the weights of norm layers.
        momentum: Momentum of sgd.
        gradient_clip: Largest norm of the gradient; 0 does not clip.
        augment: Transform every training batch by a random element of the benchmark's group.
        drop_last: Leave out an epoch's last batch if it is smaller than the others.
    """

    epochs: int = within(COUNT)
    batch_size: int = within(COUNT)
    optimizer: Literal["adam", "adamw", "sgd", "muon"] = "adam"
    residual_rate: float = within(POSITIVE, 1.0)
    projected_share: float = within(SHARE, 0.0)
    weight_decay: float = within(NOT_NEGATIVE, 0.0)
    momentum: float = within(SHARE, 0.0)
    decay_biases: bool = True
    gradient_clip: float = within(NOT_NEGATIVE, 0.0)
    augment: bool = False
    drop_last: bool = False


@dataclass(frozen=True, kw_only=True)
class ResidualSettings(Settings):
    """Where the residuals are placed, and of which kind they are.

    In files and on the command line the settings of the kind are listed with the others, `kind` is its name, and the name
    stream denotes the residual stream of a placement, which has no settings.

    Attributes:
        placement: Name of a placement, which determines the modules that get a residual and the residual's input; none for
            networks that have nothing to relax.
        exclude: Path patterns of layers that get no residual.
        unbiased: Path patterns of layers whose residual has no bias, whatever the kind's `bias` says.
        kind: The kind of residuals; a new kind takes over the settings that it shares with the previous one.
    """

    placement: str
    exclude: list[str] = field(default_factory=list)
    unbiased: list[str] = field(default_factory=list)
    kind: ResidualKind | None = field(default_factory=Dense)

    @classmethod
    def of(
        cls, values: Mapping[str, Any], key: str = "{}", error: type[EquirelaxError] | None = None
    ) -> ResidualSettings:
        """Settings from values in the layout of files. Settings that only other kinds have are left out, because recipes start
        from the settings of another method, which may use another kind.
        """
        known = [name for name in values if name in KIND_FIELDS]
        kind = _kind_of(values, Dense(), key, drop=known, error=error or cls.error)
        return super().of({**_without_kind(values), "kind": kind}, key, error)

    def changed(
        self, values: Mapping[str, Any], key: str = "{}", error: type[EquirelaxError] | None = None
    ) -> ResidualSettings:
        """A copy with some values replaced, in the layout of files.

        Raises:
            ConfigError: A value does not fit, or only another kind has the setting.
        """
        earlier = values.keys() >= EARLIER_KIND
        kind = _kind_of(
            values, self.kind, key, drop=list(KIND_FIELDS) if earlier else [], error=error or self.error
        )
        return super().changed({**_without_kind(values), "kind": kind}, key, error)

    def to_dict(self) -> dict[str, Any]:
        """The layout of files: the kind's name, and its settings along with the others."""
        own = {"placement": self.placement, "kind": STREAM if self.kind is None else self.kind.name}
        rest = {"exclude": list(self.exclude), "unbiased": list(self.unbiased)}
        return {**own, **({} if self.kind is None else self.kind.to_dict()), **rest}


STREAM = "stream"
KIND_NAMES = (*(name for name in kinds.names() if name != kinds.StreamStep.name), STREAM)
KIND_FIELDS = {f.name for name in KIND_NAMES if name != STREAM for f in dataclasses.fields(kinds.get(name))}
EARLIER_KIND = {"init", "std", "bias", "hidden", "layers"}
"""Settings that occur together only in files of earlier versions, which have those of all kinds."""


def _without_kind(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "kind" and name not in KIND_FIELDS}


def _kind_of(
    values: Mapping[str, Any],
    before: ResidualKind | None,
    key: str,
    *,
    drop: Collection[str],
    error: type[EquirelaxError],
) -> ResidualKind | None:
    """The kind that `values` name, with its settings in them.

    Args:
        values: The settings, in the layout of files.
        before: The kind that is changed.
        key: See `Settings.of`.
        drop: Settings that are left out if the kind does not have them.
        error: The class of the exception to raise.
    """
    name = values.get("kind", STREAM if before is None else before.name)
    if not isinstance(name, str) or name not in KIND_NAMES:
        hint = did_you_mean(str(name), KIND_NAMES)
        raise error(f"{key.format('kind')} is {shown(name)}; choose one of {', '.join(KIND_NAMES)}.{hint}")
    made = None if name == STREAM else kinds.get(name)
    names = set() if made is None else {f.name for f in dataclasses.fields(made)}
    given = {n: v for n, v in values.items() if n in KIND_FIELDS and (n in names or n not in drop)}
    if foreign := [n for n in given if n not in names]:
        raise error(
            f"{key.format(foreign[0])} is no setting of residuals of kind {name}"
            + (f", which have {', '.join(sorted(names))}." if names else ".")
        )
    if made is None:
        return None
    if isinstance(before, made):
        return before.changed(given, key, error)
    types = {} if before is None else types_of(type(before))
    shared = {n: getattr(before, n) for n in names if types.get(n) == types_of(made)[n]}
    return made.of({**shared, **given}, key, error)


@dataclass(frozen=True, kw_only=True)
class Dataset(Settings):
    """The samples of a run: one subclass for every benchmark."""

    @property
    def seeded(self) -> bool:
        """Whether the samples depend on the run's seed."""
        return False


@dataclass(frozen=True, kw_only=True)
class Splits(Dataset):
    """The number of samples in each split.

    Attributes:
        train: Training samples; null takes all.
        val: Validation samples; null takes all.
        test: Test samples; null takes all.
    """

    train: int | None = within(COUNT, None)
    val: int | None = within(COUNT, None)
    test: int | None = within(COUNT, None)


@dataclass(frozen=True, kw_only=True)
class Network(Settings):
    """The size of the strict network: one subclass for every model."""


@dataclass(frozen=True, kw_only=True)
class Layered(Network):
    """A network of layers, one after the other.

    Attributes:
        layers: Number of layers.
    """

    layers: int = within(DEPTH)


@dataclass(frozen=True, kw_only=True)
class Wide(Layered):
    """Layers of one width.

    Attributes:
        hidden: Width of features and messages.
    """

    hidden: int = within(WIDTH)


@dataclass(frozen=True, kw_only=True)
class Steerable(Wide):
    """A SEGNN.

    Attributes:
        hidden: Width of the dense network whose number of weights the irreps match (64: 32x0e+32x1o at l_max 1).
        layers: Rounds of message passing.
        l_max: Largest degree of the features.
        lmax_attributes: Largest degree of the edge and node attributes.
    """

    l_max: int = within(DEGREE)
    lmax_attributes: int = within(Range(1, DEGREE.most))


@dataclass(frozen=True, kw_only=True)
class Near(Network):
    """A network whose atoms interact with those nearby.

    Attributes:
        cutoff: Largest distance of neighbours, Angstrom.
    """

    cutoff: float = within(POSITIVE)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """One run: its names on the command line, and the settings behind them.

    Attributes:
        seed: Seed of the weights, the order of samples and the augmentation.
        recipe: The variant of the recipe that the settings start from, or `EARLIER`.
        trained_as: METHOD or METHOD VARIANT whose training settings and data the recipe was given; None for its own.
    """

    benchmark: str
    model: str
    method: str
    seed: int = within(SEED, 0)
    training: Training
    dataset: Dataset
    network: Network
    residual: ResidualSettings
    strength: Settings
    recipe: str = "published"
    trained_as: str | None = None
    sections: ClassVar[tuple[str, ...]] = SECTIONS

    def to_dict(self) -> dict[str, Any]:
        """Plain Python in the layout of `config.yaml`: training settings at the top, then the sections."""
        top: dict[str, Any] = {name: getattr(self, name) for name in (*NAMES, "seed")}
        top.update(self.training.to_dict())
        top.update({name: getattr(self, name).to_dict() for name in self.sections})
        return top

    def updated(self, values: Mapping[str, Any]) -> RunConfig:
        """A copy in which `values`, in the layout of `to_dict`, replace this configuration's.

        Raises:
            ConfigError: An unknown key (with a suggestion), or a value of the wrong type or outside its range.
        """
        training_keys = [f.name for f in dataclasses.fields(Training)]
        known = [*NAMES, "seed", *training_keys, *self.sections]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"Unknown key {shown(key)} in the configuration.{did_you_mean(str(key), known)}"
                )
        for name in NAMES:
            if values.get(name, getattr(self, name)) != getattr(self, name):
                raise ConfigError(
                    f"The configuration is for {name} '{values[name]}', not '{getattr(self, name)}'. "
                    f"Give the same {name}, or leave the key out."
                )
        top = {key: values[key] for key in training_keys if key in values}
        changed = {
            name: getattr(self, name).changed(section(values, name), f"'{name}.{{}}'", ConfigError)
            for name in self.sections
        }
        changed["training"] = self.training.changed(top, "'{}'")
        return self.changed({"seed": values.get("seed", self.seed), **changed}, "'{}'")

    def write(self, path: Path) -> None:
        """Write `to_dict()` as YAML."""
        write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False))


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a duplicate key instead of taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping without duplicate keys."""
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
        ConfigError: The file cannot be read, is not YAML, has a duplicate key, is too large, or is not a mapping.
    """
    try:
        # the loader builds only plain Python values, as yaml.safe_load does
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
    """Whether there are more than `most` values, where those behind YAML's aliases count at every place."""
    waiting, count = [loaded], 0
    while waiting and count <= most:
        value = waiting.pop()
        count += 1
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | set | tuple):
            waiting.extend(value)
    return count > most


def section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The mapping at a key; an empty one if there is none.

    Raises:
        ConfigError: The value is something else.
    """
    found = values.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"'{name}' should be a mapping of keys to values, not {shown(found)}.")
    return found
