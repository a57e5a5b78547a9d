"""Scheduled relaxation (CR, arXiv 2408.13242, section 4): one strength for all residuals, driven by a schedule."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from equirelax.errors import EquirelaxWarning, MethodError
from equirelax.methods.base import Method
from equirelax.methods.registry import register
from equirelax.methods.schedules import Schedule, resolve
from equirelax.relaxation.regularizers import LieDerivative
from equirelax.settings import COUNT, FINITE, NOT_NEGATIVE, check, within

if TYPE_CHECKING:
    from equirelax.relaxation import Relaxation


@register("scheduled", "CR: one strength, 0 -> 1 -> 0 by a schedule, with the Lie-derivative regulariser")
class Scheduled(Method):
    """gamma follows a schedule, and CR's regulariser keeps the residuals small and close to equivariance.

        gamma(t) = peak * schedule(t / (total_steps - 1)),   t = 0, 1, ... counts the optimizer's steps
        loss     = task + lie_weight * sqrt(LD) + norm_weight * sqrt(N)

    so that the triangle is exactly 0 at the first step and at the last, whereas the paper's `2 (1 - t/T)`
    ends at 2/T. Per epoch: gamma(e) = peak * schedule(e / (epochs - 1)), constant within an epoch and exactly 0 in the
    whole last epoch. After `total_steps`, gamma stays at the end of the schedule. A step that a GradScaler skips does not
    count: see `Method`.

    Args:
        relaxation: The relaxed model. A learnt gamma is fixed again.
        total_steps: Number of optimizer steps of the whole training, at least 1.
        settings: `Settings`, or None to give them by name.
        steps_per_epoch: Steps per epoch, at least 1, to change gamma once per epoch. None changes it at every step.
        generator: Random number generator that chooses the rows of the regulariser.
        fields: Settings by name.

    Warns:
        EquirelaxWarning: The training is too short for its schedule: it has one step, whose gamma is the schedule's start, or
            two for a triangle, which is 0 at both.

    Raises:
        MethodError: A setting is unknown or out of range.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(Method.Settings):
        """The schedule of gamma, and CR's regulariser. With both weights 0 it is off, and no inputs are kept.

        Attributes:
            schedule: Schedule of gamma over the run; in Python also a function from progress in [0, 1] to gamma.
            peak: Factor on the schedule, which reaches 1.
            lie_weight: Weight of the Lie-derivative term (lambda_reg).
            norm_weight: Weight of the residual-norm term (lambda_reg).
            rows: Number of input rows from which the regulariser is computed; null takes all of them.
            scaling: Square roots of sums, as in the paper, or means that do not depend on the batch size.
            every: The regulariser is computed once in this many steps, and multiplied by this number; published settings
                use 1.
            penalty_times_gamma: Multiply the regulariser by gamma (CR on VN-DGCNN).
        """

        schedule: Literal["triangle", "linear", "cosine", "constant", "hold-then-decay"] | Schedule = (
            "triangle"
        )
        peak: float = within(FINITE, 1.0)
        lie_weight: float = within(NOT_NEGATIVE, 0.01)
        norm_weight: float = within(NOT_NEGATIVE, 0.01)
        rows: int | None = within(COUNT, None)
        scaling: Literal["root-sum", "mean"] = "root-sum"
        every: int = within(COUNT, 1)
        penalty_times_gamma: bool = False

    settings: Settings
    capturable: ClassVar[bool] = True
    stackable: ClassVar[bool] = True

    def __init__(
        self,
        relaxation: Relaxation,
        total_steps: int,
        settings: Settings | None = None,
        *,
        steps_per_epoch: int | None = None,
        generator: torch.Generator | None = None,
        **fields: Any,
    ) -> None:
        self._check_handle(relaxation)
        if total_steps is None:
            raise MethodError("total_steps is None; give the number of optimizer steps of the whole training")
        check(total_steps, COUNT, "total_steps", MethodError)
        check(steps_per_epoch, COUNT, "steps_per_epoch", MethodError)
        own = self.Settings.given(settings, fields)
        self.schedule = resolve(own.schedule)
        regularizer = None
        if own.lie_weight != 0.0 or own.norm_weight != 0.0:
            regularizer = LieDerivative(
                relaxation,
                own.lie_weight,
                own.norm_weight,
                rows=own.rows,
                scaling=own.scaling,
                generator=generator,
                every=own.every,
            )
        self.settings = own
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.steps = 0
        self.gamma_at(0)  # an invalid schedule raises here, before another method ends
        super().__init__(relaxation, own, regularizer=regularizer)
        for residual in relaxation.residuals.values():
            residual.fix_gamma()
        self._apply()
        self._warn_if_too_short()

    def capture_obstacle(self) -> str:
        """See `Method`."""
        if self.settings.penalty_times_gamma and self.regularizer is not None:
            return "penalty_times_gamma multiplies the penalty by a number of Python"
        return super().capture_obstacle()

    def _points(self) -> int:
        """Number of values that the schedule takes, one per step or per epoch."""
        return (
            self.total_steps if self.steps_per_epoch is None else -(-self.total_steps // self.steps_per_epoch)
        )

    def _warn_if_too_short(self) -> None:
        points, unit = self._points(), "steps" if self.steps_per_epoch is None else "epochs"
        if points > 2:
            return
        values = [self._strength(float(i)) for i in range(points)]
        if points == 1 and values[0] != 0.0 and self._strength(1.0) != values[0]:
            what = f"its whole training has gamma = {values[0]:g}, and the network is projected from there"
        elif not any(values) and self._strength(0.5) != 0.0:
            what = "gamma is 0 throughout: this trains the strict network"
        else:
            return
        warnings.warn(
            f"Scheduled: with {points} {unit} {what}. Give total_steps, the number of optimizer steps of the whole "
            f"training, with at least 3 {unit} in it"
            + (
                ""
                if self.steps_per_epoch is None
                else "; or leave steps_per_epoch out, to change at every step"
            ),
            EquirelaxWarning,
            stacklevel=3,
        )

    def _strength(self, progress: float) -> float:
        return self.settings.peak * float(self.schedule(progress))

    def gamma_at(self, step: int) -> float:
        """The strength at a step (counted from 0).

        Raises:
            MethodError: The schedule gave no finite number.
        """
        done, last = step, self.total_steps - 1
        if self.steps_per_epoch is not None:
            done, last = step // self.steps_per_epoch, self._points() - 1
        progress = min(done / last, 1.0) if last > 0 else float(done > 0)
        value = self._strength(progress)
        if not math.isfinite(value):
            raise MethodError(
                f"the schedule gave {value} at progress {progress}; it must give a finite strength"
            )
        return value

    @property
    def gamma(self) -> float:
        """The strength of the next step."""
        return self.gamma_at(self.steps)

    def _apply(self) -> None:
        self.relaxation.set_gamma(self.gamma)

    def _term(self) -> Tensor:
        return self._gammas().new_zeros(())

    def _regularizer_weight(self) -> float:
        return self.gamma if self.settings.penalty_times_gamma else 1.0

    def _advance(self) -> None:
        self.steps += 1
        self._apply()

    def _state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def _load(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
