"""The methods as the command line names them: their settings, and how each is built from a relaxation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

import equirelax.methods as methods
from equirelax.benchmarks.settings import Strength
from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax.methods.base import Method
from equirelax.methods.schedules import Schedule, resolve
from equirelax.models.canonical import VNCanonicalizer
from equirelax.penalties import FiniteRotation
from equirelax.ranges import (
    COUNT, COUNT_OR_NONE, DEPTH, FINITE, NOT_NEGATIVE, POSITIVE, SEED, WIDTH, Range, within,
)  # fmt: skip
from equirelax.relaxation import Relaxation
from equirelax.symmetry import SE, SO, E, Group, O, vector


@dataclass(kw_only=True)
class ScheduledStrength(Strength):
    """CR: gamma follows a schedule and the residuals are penalised.

    Attributes:
        schedule: Course of gamma over the run.
        peak: What the course, which reaches 1, is multiplied by.
        course_epochs: Epochs that the course takes; null: all of the run's. A longer one is cut off by the run's end, after a
            shorter one gamma stays at its end.
        per: Whether gamma changes at every step or only from epoch to epoch.
        lie_weight: Weight of the Lie-derivative term (lambda_reg).
        norm_weight: Weight of the residual-norm term (lambda_reg).
        rows: Input rows that the penalty is computed from; null takes all of them.
        scaling: Square roots of sums, as printed, or means that do not depend on the batch size.
        every: The penalty is computed at every so many steps, times that number; published settings use 1.
        penalty_times_gamma: Multiply the penalty by gamma.
        degrees: Penalise, in the place of both terms, the mean difference that a rotation by this angle makes (see
            `FiniteRotation`), times lie_weight; 0 does not.
    """

    schedule: Literal["triangle", "linear", "cosine", "constant", "hold-then-decay"] = "triangle"
    peak: float = within(FINITE, 1.0)
    course_epochs: int | None = within(COUNT, None)
    per: Literal["step", "epoch"] = "epoch"
    lie_weight: float = within(NOT_NEGATIVE)
    norm_weight: float = within(NOT_NEGATIVE)
    rows: int | None = within(COUNT, None)
    scaling: Literal["root-sum", "mean"] = "root-sum"
    every: int = within(COUNT, 1)
    penalty_times_gamma: bool = False
    degrees: float = within(Range(0, 360, open_most=True), 0.0)


@dataclass(kw_only=True)
class ACEStrength(Strength):
    """ACE, Algorithm 1: gamma is learnt under the constraint gamma = 0.

    Attributes:
        dual_lr: Step size of the multipliers (eta_d).
        dual_optimizer: sgd as printed in the paper, adam as in the released code.
        dual_eps: Epsilon of adam.
        augmented: Weight c of the augmented term (c/2) gamma^2; 0 is the printed algorithm.
        pi: Proportional gain of the PI update of the multipliers; 0 is the printed algorithm.
        initial: Strength at the start.
        reduction: Sum (as printed) or mean of multiplier x gamma over the residuals.
    """

    dual_lr: float = within(POSITIVE)
    dual_optimizer: Literal["sgd", "adam"] = "sgd"
    dual_eps: float = within(POSITIVE, 1e-8)
    augmented: float = within(NOT_NEGATIVE, 0.0)
    pi: float = within(NOT_NEGATIVE, 0.0)
    initial: float = within(FINITE, 1.0)
    reduction: Literal["sum", "mean"] = "sum"


@dataclass(kw_only=True)
class ResilientStrength(Strength):
    """ACE, Algorithm 2: |gamma| <= u with a learnt slack u; gamma is kept at the end.

    Attributes:
        dual_lr: Step size of the multipliers (eta_d).
        primal_lr: Step size of the slacks (eta_p); null takes the optimiser's learning rate.
        rho: Weight of the slacks' cost (rho/2) ||u||^2.
        form: Algorithm 2 as printed, or what the released code does in its place on N-body (released) and on motion
            capture (clamped); see `ResilientACE`.
        dual_optimizer: sgd as printed in the paper, adam as in the released code.
        dual_eps: Epsilon of adam.
        initial: Strength at the start.
        reduction: Sum (as printed) or mean of the multipliers' terms over the residuals.
        augmented: Weight of the augmented term; 0 is the printed algorithm.
        pi: Proportional gain of the multipliers' update; 0 is the printed algorithm.
    """

    dual_lr: float = within(POSITIVE)
    primal_lr: float | None = within(POSITIVE, None)
    rho: float = within(POSITIVE, 1.0)
    form: Literal["algorithm", "released", "clamped"] = "algorithm"
    dual_optimizer: Literal["sgd", "adam"] = "sgd"
    dual_eps: float = within(POSITIVE, 1e-8)
    initial: float = within(FINITE, 1.0)
    reduction: Literal["sum", "mean"] = "sum"
    augmented: float = within(NOT_NEGATIVE, 0.0)
    pi: float = within(NOT_NEGATIVE, 0.0)


@dataclass(kw_only=True)
class REMULStrength(Strength):
    """REMUL: the loss on moved samples as a second task; strengths stay at gamma.

    Attributes:
        alpha: Weight of the loss on samples as they are.
        beta: Weight of the loss on moved samples.
        weighting: Constant weights, or GradNorm's, which start there and keep their sum.
        gamma: The fixed strength of the residuals, where the model has any.
        asymmetry: GradNorm's exponent of the relative training rate.
        weights_lr: GradNorm's step size.
        weights_optimizer: What moves GradNorm's weights.
    """

    alpha: float = within(NOT_NEGATIVE, 1.0)
    beta: float = within(NOT_NEGATIVE, 1.0)
    weighting: Literal["constant", "gradnorm"] = "constant"
    gamma: float = within(FINITE, 1.0)
    asymmetry: float = within(NOT_NEGATIVE, 1.5)
    weights_lr: float = within(POSITIVE, 0.025)
    weights_optimizer: Literal["adam", "sgd"] = "adam"


@dataclass(kw_only=True)
class RPPStrength(Strength):
    """RPP: Gaussian priors on the equivariant and the residual weights; strengths stay at gamma.

    Attributes:
        eq_weight: Factor of the squared norm of the author's weights.
        residual_weight: Factor of the squared norm of the residuals' weights.
        gamma: The fixed strength of the residuals.
    """

    eq_weight: float = within(NOT_NEGATIVE, 1e-5)
    residual_weight: float = within(NOT_NEGATIVE, 1e-3)
    gamma: float = within(FINITE, 1.0)


@dataclass(kw_only=True)
class EquiTuningStrength(Strength):
    """Equi-Tuning: the network's predictions averaged over group elements.

    Attributes:
        samples: Elements that a prediction is averaged over; a finite group with no more is taken whole.
        training_samples: Elements drawn anew for every training batch; 0 trains the network as it is.
        reflections: Average over reflections too, where the group has them.
        seed: Seed of the elements of evaluation.
    """

    samples: int = within(COUNT, 16)
    training_samples: int = within(COUNT_OR_NONE, 0)
    reflections: bool = False
    seed: int = within(SEED, 0)


@dataclass(kw_only=True)
class EquiAdaptStrength(Strength):
    """Equi-Adapt: a small equivariant network turns every sample into a pose of its own before the network.

    Attributes:
        hidden: Channels of vectors of the canonicalising network.
        layers: Its hidden layers.
        neighbours: Nearest neighbours whose mean is its second input.
    """

    hidden: int = within(WIDTH, 21)
    layers: int = within(DEPTH, 2)
    neighbours: int = within(Range(2, 1024), 20)


@dataclass(frozen=True)
class Choice:
    """A method on the command line. The settings that make it what it is are in `recipes/methods.yaml`.

    Attributes:
        description: What it is, in a sentence.
        strength: The type of its settings.
        deploys_relaxed: Whether the trained model is used with its residuals.
        optimizer: The optimiser that makes the method what it is; None takes the benchmark's.
    """

    description: str
    strength: type[Strength]
    deploys_relaxed: bool = False
    optimizer: str | None = None


CHOICES: dict[str, Choice] = {
    "strict": Choice("no relaxation: the network as its author wrote it", Strength),
    "strict-muon": Choice(
        "control: no relaxation, a better optimiser (Muon on matrices, Adam on the rest)",
        Strength,
        optimizer="muon",
    ),
    "scheduled": Choice("CR: gamma rises from 0 to 1 and falls to 0 again; Lie penalty", ScheduledStrength),
    "ace": Choice("ACE, Algorithm 1: gamma learnt under gamma = 0", ACEStrength),
    "resilient": Choice(
        "ACE, Algorithm 2: learnt slacks, the relaxed model is kept", ResilientStrength, True
    ),
    "ace-augmented": Choice("ACE with an augmented Lagrangian, which damps oscillation", ACEStrength),
    "ace-pi": Choice("ACE with a proportional-integral multiplier, which damps oscillation", ACEStrength),
    "equivariant-control": Choice(
        "control: CR's schedule with residuals that are equivariant themselves (extra capacity only)",
        ScheduledStrength,
    ),
    "no-schedule": Choice("ablation of CR: gamma is 1 throughout; projected all the same", ScheduledStrength),
    "no-lie": Choice("ablation of CR: no Lie term, the norm alone", ScheduledStrength),
    "no-penalty": Choice("ablation of CR: neither Lie term nor norm", ScheduledStrength),
    "remul": Choice("REMUL: the loss on moved samples as a second task; any network", REMULStrength, True),
    "rpp": Choice("RPP: Gaussian priors on equivariant and residual weights", RPPStrength, True),
    "equi-tuning": Choice(
        "Equi-Tuning: predictions averaged over group elements; any network", EquiTuningStrength
    ),
    "equi-adapt": Choice(
        "Equi-Adapt: a canonicalising network in front of any network for point clouds", EquiAdaptStrength
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
    return issubclass(choice(name).strength, ScheduledStrength)


def is_learnt(name: str) -> bool:
    """Whether the strengths are learnt (ACE in all its forms)."""
    return issubclass(choice(name).strength, (ACEStrength, ResilientStrength))


def is_strict(name: str) -> bool:
    """Whether the network is trained as its author wrote it, with nothing added (strict, strict-muon)."""
    return choice(name).strength is Strength


def needs_residuals(name: str) -> bool:
    """Whether the method drives residuals, so that it is for networks that have any."""
    return not (is_strict(name) or is_wrapper(name) or issubclass(choice(name).strength, REMULStrength))


def is_wrapper(name: str) -> bool:
    """Whether the method is a module around the network, with no residuals and nothing to step."""
    return issubclass(choice(name).strength, (EquiTuningStrength, EquiAdaptStrength))


def build_method(
    relaxation: Relaxation | nn.Module,
    strength: Strength,
    *,
    epochs: int,
    steps_per_epoch: int,
    learning_rate: float,
    seed: int,
) -> Method:
    """The method that `strength` describes, attached to `relaxation`.

    Args:
        relaxation: A relaxed model's handle; for REMUL also a model that is not relaxed.
        strength: Settings of one of the methods above.
        epochs, steps_per_epoch: Length of the run, for schedules.
        learning_rate: The optimiser's step size, for slacks that share it.
        seed: Seed of the penalty's row subsampling.

    Raises:
        ConfigError: the strength is none of a method, or it needs residuals and there are none.
    """
    if isinstance(strength, REMULStrength):
        return _remul(relaxation, strength)
    if not isinstance(relaxation, Relaxation):
        name = next((n for n, c in CHOICES.items() if c.strength is type(strength)), "the method")
        raise ConfigError(
            f"{name} needs residuals, and {type(relaxation).__name__} has none: choose another model, or a method "
            f"that works on any network (remul, equi-tuning, equi-adapt)."
        )
    if isinstance(strength, ScheduledStrength):
        return _scheduled(relaxation, strength, epochs, steps_per_epoch, seed)
    if isinstance(strength, ACEStrength):
        return _ace(relaxation, strength)
    if isinstance(strength, ResilientStrength):
        return _resilient(relaxation, strength, learning_rate)
    if isinstance(strength, RPPStrength):
        return methods.RPP(relaxation, strength.eq_weight, strength.residual_weight, gamma=strength.gamma)
    raise ConfigError(f"{type(strength).__name__} describes no method that drives a relaxation.")


def build_wrapper(
    model: nn.Module, strength: Strength, inputs: tuple[Any, ...], output: Any, group: Group
) -> nn.Module:
    """The module that `strength` describes, around `model`.

    Args:
        model: A strict network; it becomes a child of the module.
        strength: Settings of Equi-Tuning or Equi-Adapt.
        inputs, output: How the group acts on the model's arguments and on its output.
        group: The benchmark's group.

    Raises:
        ConfigError: the strength is of another kind, or Equi-Adapt is to turn something else than point clouds.
    """
    if isinstance(strength, EquiTuningStrength):
        drawn = group if strength.reflections else _rotations(group)
        return methods.EquiTuned(
            model,
            inputs,
            output,
            drawn,
            strength.samples,
            strength.seed,
            training_samples=strength.training_samples,
        )
    if not isinstance(strength, EquiAdaptStrength):
        raise ConfigError(f"{type(strength).__name__} describes no module around a network.")
    if len(inputs) != 1 or inputs[0] != vector(inputs[0].group) or inputs[0].dim != 3:
        raise ConfigError(
            "equi-adapt turns point clouds, (batch, points, 3) as the one argument of the model; this model takes "
            f"{', '.join(map(repr, inputs))}. With a canonicaliser of your own use equirelax.methods.EquiAdapted."
        )
    canonicalizer = VNCanonicalizer(strength.hidden, strength.layers, strength.neighbours)
    return methods.EquiAdapted(model, canonicalizer, inputs, output)


def _rotations(group: Group) -> Group:
    """The part of a group of space that has no reflections."""
    if isinstance(group, E):
        return SE(group.n)
    return SO(group.n) if isinstance(group, O) else group


def _scheduled(
    relaxation: Relaxation, s: ScheduledStrength, epochs: int, steps_per_epoch: int, seed: int
) -> Method:
    method = methods.Scheduled(
        relaxation,
        total_steps=(s.course_epochs or epochs) * steps_per_epoch,
        schedule=_course(s),
        steps_per_epoch=steps_per_epoch if s.per == "epoch" else None,
        lie_weight=s.lie_weight,
        norm_weight=s.norm_weight,
        rows=s.rows,
        scaling=s.scaling,
        every=s.every,
        generator=torch.Generator().manual_seed(seed),
        penalty_times_gamma=s.penalty_times_gamma,
    )
    if s.degrees and s.lie_weight:
        generator = torch.Generator().manual_seed(seed)
        method.regularizer = FiniteRotation(relaxation, s.lie_weight, s.degrees, generator)
    return method


def _course(s: ScheduledStrength) -> Schedule:
    course, peak = resolve(s.schedule), s.peak
    return lambda progress: peak * course(progress)


def _ace(relaxation: Relaxation, s: ACEStrength) -> Method:
    return methods.ACE(
        relaxation,
        dual_lr=s.dual_lr,
        dual_optimizer=s.dual_optimizer,
        dual_eps=s.dual_eps,
        augmented=s.augmented,
        pi=s.pi,
        initial=s.initial,
        reduction=s.reduction,
    )


def _resilient(relaxation: Relaxation, s: ResilientStrength, learning_rate: float) -> Method:
    if s.primal_lr is None and not learning_rate * s.rho < 2.0:
        raise ConfigError(
            f"'learning_rate' is {learning_rate}, and the slacks' steps are as large: times 'strength.rho' ({s.rho}) it must be "
            f"below 2. Make one of them smaller, or set 'strength.primal_lr'."
        )
    return methods.ResilientACE(
        relaxation,
        dual_lr=s.dual_lr,
        primal_lr=learning_rate if s.primal_lr is None else s.primal_lr,
        rho=s.rho,
        form=s.form,
        dual_optimizer=s.dual_optimizer,
        dual_eps=s.dual_eps,
        initial=s.initial,
        reduction=s.reduction,
        augmented=s.augmented,
        pi=s.pi,
    )


def _remul(model: Relaxation | nn.Module, s: REMULStrength) -> Method:
    return methods.REMUL(
        model,
        alpha=s.alpha,
        beta=s.beta,
        weighting=s.weighting,
        gamma=s.gamma,
        asymmetry=s.asymmetry,
        weights_lr=s.weights_lr,
        weights_optimizer=s.weights_optimizer,
    )
