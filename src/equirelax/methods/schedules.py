"""Schedules: gamma as a function of the progress of training, which is 0 at the first step and 1 at the last."""

from __future__ import annotations

import math
from collections.abc import Callable

from equirelax.errors import MethodError
from equirelax.files import did_you_mean

Schedule = Callable[[float], float]


def triangle(progress: float) -> float:
    """CR, section 4: `2 p` up to the middle, `2 (1 - p)` after it; exactly 0 at both ends."""
    return 2.0 * progress if progress <= 0.5 else 2.0 * (1.0 - progress)


def linear(progress: float) -> float:
    """`1 - p`, from 1 down to exactly 0."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """`(1 + cos(pi p)) / 2`, from 1 down to exactly 0, flat at both ends."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def constant(progress: float) -> float:
    """1 throughout: CR's ablation without a schedule. Projection then removes a residual at full strength."""
    return 1.0


def hold_then_decay(progress: float) -> float:
    """1 in the first half, then linearly down to exactly 0."""
    return 1.0 if progress <= 0.5 else 2.0 * (1.0 - progress)


SCHEDULES: dict[str, Schedule] = {
    "triangle": triangle,
    "linear": linear,
    "cosine": cosine,
    "constant": constant,
    "hold-then-decay": hold_then_decay,
}


def resolve(schedule: str | Schedule) -> Schedule:
    """Return the schedule with a name; a callable from progress in [0, 1] to gamma is returned unchanged.

    Raises:
        MethodError: The name is unknown, or `schedule` is neither a name nor a callable.
    """
    if callable(schedule):
        return schedule
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        known = list(SCHEDULES)
        raise MethodError(
            f"no schedule {schedule!r}; there are {', '.join(known)}, "
            f"or give a callable from progress in [0, 1] to gamma.{did_you_mean(str(schedule), known)}"
        )
    return SCHEDULES[schedule]
