"""The methods as the command line names them: their settings, and how each is built from a relaxation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

import equirelax.methods as methods
from equirelax.benchmarks.settings import Strength
from equirelax.errors import ConfigError
from equirelax.files import did_you_mean
from equirelax.methods.base import Method
from equirelax.relaxation import Relaxation


@dataclass
class ScheduledStrength(Strength):
    """CR: gamma follows a schedule and the residuals are penalised.

    Attributes:
        schedule: Course of gamma over the run.
        per: Whether gamma changes at every step or only from epoch to epoch.
        lie_weight: Weight of the Lie-derivative term (lambda_reg).
        norm_weight: Weight of the residual-norm term (lambda_reg).
        rows: Input rows that the penalty is computed from; null takes all of them.
        scaling: Square roots of sums, as printed, or means that do not depend on the batch size.
        penalty_times_gamma: Multiply the penalty by gamma.
    """

    schedule: Literal["triangle", "linear", "cosine", "constant", "hold-then-decay"] = "triangle"
    per: Literal["step", "epoch"] = "epoch"
    lie_weight: float = 0.01
    norm_weight: float = 0.01
    rows: int | None = None
    scaling: Literal["root-sum", "mean"] = "root-sum"
    penalty_times_gamma: bool = False


@dataclass
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

    dual_lr: float = 8e-4
    dual_optimizer: Literal["sgd", "adam"] = "sgd"
    dual_eps: float = 1e-8
    augmented: float = 0.0
    pi: float = 0.0
    initial: float = 1.0
    reduction: Literal["sum", "mean"] = "sum"


@dataclass
class ResilientStrength(Strength):
    """ACE, Algorithm 2: |gamma| <= u with a learnt slack u; gamma is kept at the end.

    Attributes:
        dual_lr: Step size of the multipliers (eta_d).
        primal_lr: Step size of the slacks (eta_p); null takes the optimiser's learning rate.
        rho: Weight of the slacks' cost (rho/2) ||u||^2.
        dual_optimizer: sgd as printed in the paper, adam as in the released code.
        augmented: Weight of the augmented term; 0 is the printed algorithm.
        pi: Proportional gain of the multipliers' update; 0 is the printed algorithm.
    """

    dual_lr: float = 8e-4
    primal_lr: float | None = None
    rho: float = 1.0
    dual_optimizer: Literal["sgd", "adam"] = "sgd"
    augmented: float = 0.0
    pi: float = 0.0


@dataclass(frozen=True)
class Choice:
    """A method on the command line: what it is in a sentence, and its settings before any benchmark changes
    them.
    """

    description: str
    strength: Strength
    deploys_relaxed: bool = False


CHOICES: dict[str, Choice] = {
    "strict": Choice("no relaxation: the network as its author wrote it", Strength()),
    "scheduled": Choice("CR: gamma rises from 0 to 1 and falls to 0 again; Lie penalty", ScheduledStrength()),
    "ace": Choice("ACE, Algorithm 1: gamma learnt under gamma = 0, multipliers by SGD", ACEStrength()),
    "resilient": Choice(
        "ACE, Algorithm 2: learnt slacks, the relaxed model is kept", ResilientStrength(), True
    ),
    "ace-augmented": Choice(
        "ACE with an augmented Lagrangian, which damps oscillation", ACEStrength(augmented=1.0)
    ),
    "ace-pi": Choice(
        "ACE with a proportional-integral multiplier, which damps oscillation", ACEStrength(pi=1.0)
    ),
    "equivariant-control": Choice(
        "control: CR's schedule with residuals that are equivariant themselves (extra capacity only)",
        ScheduledStrength(),
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
    """Whether the method follows a schedule (CR and its control)."""
    return isinstance(choice(name).strength, ScheduledStrength)


def build_method(
    relaxation: Relaxation,
    strength: Strength,
    *,
    epochs: int,
    steps_per_epoch: int,
    learning_rate: float,
    seed: int,
) -> Method:
    """The method that `strength` describes, attached to `relaxation`.

    Args:
        relaxation: A relaxed model's handle.
        strength: Settings of one of the methods above.
        epochs, steps_per_epoch: Length of the run, for schedules.
        learning_rate: The optimiser's step size, for slacks that share it.
        seed: Seed of the penalty's row subsampling.
    """
    builders: dict[type[Strength], Callable[[], Method]] = {
        ScheduledStrength: lambda: _scheduled(relaxation, strength, epochs, steps_per_epoch, seed),  # type: ignore[arg-type]
        ACEStrength: lambda: _ace(relaxation, strength),  # type: ignore[arg-type]
        ResilientStrength: lambda: _resilient(relaxation, strength, learning_rate),  # type: ignore[arg-type]
    }
    if type(strength) not in builders:
        raise ConfigError(f"{type(strength).__name__} describes no method that drives a relaxation.")
    return builders[type(strength)]()


def _scheduled(
    relaxation: Relaxation, s: ScheduledStrength, epochs: int, steps_per_epoch: int, seed: int
) -> Method:
    return methods.Scheduled(
        relaxation,
        total_steps=epochs * steps_per_epoch,
        schedule=s.schedule,
        steps_per_epoch=steps_per_epoch if s.per == "epoch" else None,
        lie_weight=s.lie_weight,
        norm_weight=s.norm_weight,
        rows=s.rows,
        scaling=s.scaling,
        generator=torch.Generator().manual_seed(seed),
        penalty_times_gamma=s.penalty_times_gamma,
    )


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
    return methods.ResilientACE(
        relaxation,
        dual_lr=s.dual_lr,
        primal_lr=learning_rate if s.primal_lr is None else s.primal_lr,
        rho=s.rho,
        dual_optimizer=s.dual_optimizer,
        augmented=s.augmented,
        pi=s.pi,
    )
