"""A method, or a module around a network, from its settings."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import equirelax.methods as methods
from equirelax.errors import ConfigError
from equirelax.methods.base import Method
from equirelax.methods.schedules import Schedule, resolve
from equirelax.relaxation import Relaxation
from equirelax.relaxation.regularizers import FiniteRotation
from equirelax.symmetry import SE, SO, E, Group, O, vector
from equirelax_lab.models.canonical import VNCanonicalizer
from equirelax_lab.tasks.settings import Strength
from equirelax_lab.tasks.strengths import (
    CHOICES,
    ACEStrength,
    EquiAdaptStrength,
    EquiTuningStrength,
    REMULStrength,
    ResilientStrength,
    RPPStrength,
    ScheduledStrength,
)


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
