"""The methods as the command line names them, and their settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax_lab.ranges import (
    COUNT,
    COUNT_OR_NONE,
    DEPTH,
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    WIDTH,
    Range,
    within,
)
from equirelax_lab.tasks.settings import Strength


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
