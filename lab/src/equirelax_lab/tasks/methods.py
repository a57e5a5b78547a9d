"""The methods by the names that recipes and the command line use: their settings, and how a run builds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

import equirelax.methods as methods
from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax.methods import (
    ACE,
    REMUL,
    RPP,
    EquiTuned,
    Method,
    ResilientACE,
    Scheduled,
    Strict,
    Swing,
    SymmetryFollowing,
)
from equirelax.methods.lagrangian import Lagrangian
from equirelax.relaxation import Relaxation
from equirelax.relaxation.regularizers import FiniteRotation, ProjectionNorms
from equirelax.settings import COUNT, DEPTH, WIDTH, Range, Settings, within
from equirelax.symmetry import SE, SO, E, Group, O, vector
from equirelax_lab.tasks.settings import RunConfig

if TYPE_CHECKING:  # help texts need no audits
    from equirelax.auditing import SymmetryScore


@dataclass(frozen=True, kw_only=True)
class Course(Scheduled.Settings):
    """CR: gamma follows a schedule and the residuals are penalised.

    Attributes:
        per: Whether gamma changes at every step or only from epoch to epoch.
        course_epochs: Epochs that the course takes; null takes all epochs of the run. The end of the run cuts off a longer
            course; after a shorter one gamma keeps its last value.
        penalty: lie: the Lie derivative and the norm of a residual's output on the data; projection: the norm of the
            non-equivariant part of its map, times lie_weight, and that of the equivariant part, times norm_weight, whatever
            the data are (see `ProjectionNorms`).
        degrees: Penalise, instead of both terms of lie, the mean difference that a rotation by this angle makes (see
            `FiniteRotation`), times lie_weight, at every step and on all rows; 0 does not.
    """

    per: Literal["step", "epoch"] = "epoch"
    course_epochs: int | None = within(COUNT, None)
    penalty: Literal["lie", "projection"] = "lie"
    degrees: float = within(Range(0, 360, open_most=True), 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty == "projection" and self.degrees:
            raise ConfigError(
                "penalty is 'projection', and degrees is set, which is for the penalty lie: leave one out."
            )
        if self.degrees and (self.every != 1 or self.rows is not None):
            raise ConfigError(
                "degrees is set, whose penalty is of all rows of every step: leave out degrees, or every and rows."
            )


@dataclass(frozen=True, kw_only=True)
class Swinging(Swing.Settings):
    """Swing: gamma swings around 0.

    Attributes:
        period: Steps of one full swing; null takes 7/30 of the run's steps, as lab/results/confirmation did.
    """

    period: int | None = within(COUNT, None)  # type: ignore[assignment]

    def for_run(self, steps: int) -> Swing.Settings:
        """The settings for a run of this many steps."""
        return self if self.period else dataclasses.replace(self, period=max(1, round(steps * 7 / 30)))


@dataclass(frozen=True, kw_only=True)
class Following(SymmetryFollowing.Settings):
    """SymmetryFollowing: gamma follows the symmetry score of validation samples.

    Attributes:
        measure_every: Steps from one measurement to the next; null measures once per epoch.
        examples: Validation samples that the score is measured on.
    """

    measure_every: int | None = within(COUNT, None)  # type: ignore[assignment]
    examples: int = within(COUNT, 64)


@dataclass(frozen=True, kw_only=True)
class Tuning(EquiTuned.Settings):
    """Equi-Tuning: the network's predictions averaged over group elements.

    Attributes:
        reflections: Average over reflections as well, if the group has them.
    """

    reflections: bool = False


@dataclass(frozen=True, kw_only=True)
class Canonicalizer(Settings):
    """Equi-Adapt: a small equivariant network rotates every sample into a canonical pose before the network.

    Attributes:
        hidden: Vector channels of the canonicalising network.
        layers: Its hidden layers.
        neighbours: Nearest neighbours whose mean is its second input.
    """

    hidden: int = within(WIDTH, 21)
    layers: int = within(DEPTH, 2)
    neighbours: int = within(Range(2, 1024), 20)


@dataclass(frozen=True)
class Choice:
    """A method on the command line. The settings that define it are in `recipes/methods.yaml`.

    Attributes:
        description: What it is, in a sentence.
        settings: The class of its settings.
        deploys_relaxed: Whether the trained model is used with its residuals.
        optimizer: The optimiser that defines the method; None takes the benchmark's.
    """

    description: str
    settings: type[Settings]
    deploys_relaxed: bool = False
    optimizer: str | None = None


CHOICES: dict[str, Choice] = {
    "strict": Choice("no relaxation: the network as its author wrote it", Strict.Settings),
    "strict-muon": Choice(
        "control: no relaxation, a better optimiser (Muon on matrices, Adam on the rest)",
        Strict.Settings,
        optimizer="muon",
    ),
    "scheduled": Choice("CR: gamma rises from 0 to 1 and falls to 0 again; Lie penalty", Course),
    "ace": Choice("ACE, Algorithm 1: gamma learnt under gamma = 0", ACE.Settings),
    "resilient": Choice(
        "ACE, Algorithm 2: learnt slacks, the relaxed model is kept", ResilientACE.Settings, True
    ),
    "ace-augmented": Choice("ACE with an augmented Lagrangian, which damps oscillation", ACE.Settings),
    "ace-pi": Choice("ACE with a proportional-integral multiplier, which damps oscillation", ACE.Settings),
    "swing": Choice("this project's own: gamma swings around 0; on N-body it is shown to help", Swinging),
    "symmetry-following": Choice(
        "trial: gamma follows a score of the data's asymmetry, and is 0 where the score is noise",
        Following,
        True,
    ),
    "equivariant-control": Choice(
        "control: CR's schedule with residuals that are equivariant themselves (extra capacity only)", Course
    ),
    "no-schedule": Choice("ablation of CR: gamma is 1 throughout; the network is still projected", Course),
    "no-lie": Choice("ablation of CR: no Lie term, only the norm", Course),
    "no-penalty": Choice("ablation of CR: neither Lie term nor norm", Course),
    "remul": Choice(
        "REMUL: the loss on transformed samples as a second task; any network", REMUL.Settings, True
    ),
    "rpp": Choice("RPP: Gaussian priors on equivariant and residual weights", RPP.Settings, True),
    "equi-tuning": Choice("Equi-Tuning: predictions averaged over group elements; any network", Tuning),
    "equi-adapt": Choice(
        "Equi-Adapt: a canonicalising network in front of any network for point clouds", Canonicalizer
    ),
}


def choice(name: str) -> Choice:
    """The method called `name`. Raises `ConfigError` with a suggestion if there is none."""
    if name not in CHOICES:
        raise ConfigError(
            f"Unknown method '{name}'.{did_you_mean(name, list(CHOICES))} Known: {', '.join(CHOICES)}."
        )
    return CHOICES[name]


def is_scheduled(name: str) -> bool:
    """Whether the method follows a schedule (CR, its ablations and its control)."""
    return issubclass(choice(name).settings, Course)


def is_learnt(name: str) -> bool:
    """Whether the strengths are learnt (ACE in all its forms)."""
    return issubclass(choice(name).settings, Lagrangian.Settings)


def is_strict(name: str) -> bool:
    """Whether the network is trained as its author wrote it, without additions (strict, strict-muon)."""
    return choice(name).settings is Strict.Settings


def needs_residuals(name: str) -> bool:
    """Whether the method controls residuals, and so needs a network that has some."""
    return not (is_strict(name) or is_wrapper(name) or issubclass(choice(name).settings, REMUL.Settings))


def is_wrapper(name: str) -> bool:
    """Whether the method is a module around the network, without residuals and without steps."""
    return issubclass(choice(name).settings, (Tuning, Canonicalizer))


def build_method(
    relaxation: Relaxation | nn.Module,
    config: RunConfig,
    steps_per_epoch: int,
    measure: Callable[[Relaxation], SymmetryScore] | None = None,
) -> Method:
    """The method of a run.

    Args:
        relaxation: The handle of a relaxed model; for REMUL also a model that is not relaxed.
        config: The run's settings.
        steps_per_epoch: Optimiser steps of one epoch, for schedules.
        measure: The symmetry score of held-out samples, for methods that follow it.

    Raises:
        ConfigError: The method is a module around the network, or it needs residuals and there are none.
    """
    settings = config.strength
    if isinstance(settings, REMUL.Settings):
        return REMUL(relaxation, settings)
    if not isinstance(relaxation, Relaxation):
        raise ConfigError(
            f"{config.method} needs residuals, and {type(relaxation).__name__} has none: choose another model, or a "
            f"method that works on any network (remul, equi-tuning, equi-adapt)."
        )
    if isinstance(settings, Course):
        return _scheduled(relaxation, settings, config, steps_per_epoch)
    if isinstance(settings, ResilientACE.Settings):
        return _resilient(relaxation, settings, config.training.learning_rate)
    if isinstance(settings, ACE.Settings):
        return ACE(relaxation, settings)
    if isinstance(settings, RPP.Settings):
        return RPP(relaxation, settings)
    if isinstance(settings, Swinging):
        return Swing(relaxation, settings.for_run(config.training.epochs * steps_per_epoch))
    if isinstance(settings, Following):
        steps = settings.measure_every or steps_per_epoch
        return SymmetryFollowing(relaxation, measure, dataclasses.replace(settings, measure_every=steps))
    raise ConfigError(f"{config.method} controls no residuals: there is no method to build.")


def build_wrapper(
    model: nn.Module, settings: Settings, inputs: tuple[Any, ...], output: Any, group: Group
) -> nn.Module:
    """A module around `model` from the settings of Equi-Tuning or Equi-Adapt.

    Args:
        model: A strict network; it becomes a child of the module.
        settings: The settings.
        inputs, output: How the group acts on the model's arguments and on its output.
        group: The benchmark's group.

    Raises:
        ConfigError: The settings are of another method, or the inputs for Equi-Adapt are not point clouds.
    """
    if isinstance(settings, Tuning):
        return EquiTuned(
            model, inputs, output, group if settings.reflections else _rotations(group), settings
        )
    if not isinstance(settings, Canonicalizer):
        raise ConfigError(f"{type(settings).__qualname__} describes no module around a network.")
    if len(inputs) != 1 or inputs[0] != vector(inputs[0].group) or inputs[0].dim != 3:
        raise ConfigError(
            "equi-adapt turns point clouds, (batch, points, 3) as the only argument of the model; this model takes "
            f"{', '.join(map(repr, inputs))}. With a canonicaliser of your own use equirelax.methods.EquiAdapted."
        )
    from equirelax_lab.models.canonical import VNCanonicalizer

    canonicalizer = VNCanonicalizer(settings.hidden, settings.layers, settings.neighbours)
    return methods.EquiAdapted(model, canonicalizer, inputs, output)


def _rotations(group: Group) -> Group:
    """The subgroup, without reflections, of a group in space."""
    if isinstance(group, E):
        return SE(group.n)
    return SO(group.n) if isinstance(group, O) else group


def _scheduled(relaxation: Relaxation, settings: Course, config: RunConfig, steps_per_epoch: int) -> Method:
    method = Scheduled(
        relaxation,
        (settings.course_epochs or config.training.epochs) * steps_per_epoch,
        settings,
        steps_per_epoch=steps_per_epoch if settings.per == "epoch" else None,
        generator=torch.Generator().manual_seed(config.seed),
    )
    if settings.penalty == "projection" and method.regularizer is not None:
        method.regularizer = ProjectionNorms(
            relaxation, settings.norm_weight, settings.lie_weight, every=settings.every
        )
    elif settings.degrees:
        generator = torch.Generator().manual_seed(config.seed)
        method.regularizer = (
            FiniteRotation(relaxation, settings.lie_weight, settings.degrees, generator)
            if settings.lie_weight
            else None
        )
    return method


def _resilient(relaxation: Relaxation, settings: ResilientACE.Settings, learning_rate: float) -> Method:
    if settings.primal_lr is not None:
        return ResilientACE(relaxation, settings)
    if not learning_rate * settings.rho < 2.0:
        raise ConfigError(
            f"'learning_rate' is {learning_rate}, and the slacks' steps are as large: times 'strength.rho' ({settings.rho}) it "
            f"must be below 2. Make one of them smaller, or set 'strength.primal_lr'."
        )
    return ResilientACE(relaxation, dataclasses.replace(settings, primal_lr=learning_rate))
