"""Scheduled relaxation (CR, arXiv 2408.13242, section 4): one strength for all, driven by a schedule."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equirelax.errors import EquirelaxWarning, MethodError
from equirelax.methods.base import Method
from equirelax.methods.registry import register
from equirelax.methods.schedules import Schedule, resolve
from equirelax.relaxation.regularizers import LieDerivative

if TYPE_CHECKING:
    from equirelax.relaxation import Relaxation


@register("scheduled", "CR: one strength, 0 -> 1 -> 0 by a schedule, with the Lie-derivative regulariser")
class Scheduled(Method):
    """gamma follows a schedule; the residuals are kept small and near equivariance by CR's regulariser.

        gamma(t) = schedule(t / (total_steps - 1)),   t = 0, 1, ... counts the optimizer's steps
        loss     = task + lie_weight * sqrt(LD) + norm_weight * sqrt(N)

    so that the triangle is 0 at the first step and exactly 0 at the last, where the printed `2 (1 - t/T)`
    ends at 2/T. Per epoch: gamma(e) = schedule(e / (epochs - 1)), constant within an epoch, exactly 0 in the
    whole last epoch. After `total_steps` gamma stays at the schedule's end. A step that a GradScaler skips is none:
    see `Method`.

    Args:
        relaxation: the relaxed model; a gamma that was learnt is fixed again.
        total_steps: number of optimizer steps of the whole training, >= 1.
        schedule: "triangle", "linear", "cosine", "constant", "hold-then-decay", or a callable from progress
            in [0, 1].
        steps_per_epoch: if given, gamma changes once per epoch.
        lie_weight, norm_weight: CR's lambda_reg for both terms, >= 0; with both 0 no inputs are kept.
        rows, scaling, every, generator: see `regularizers.LieDerivative`.
        penalty_times_gamma: multiply the regulariser by gamma (CR on VN-DGCNN).

    Warns:
        EquirelaxWarning: the training is too short for its schedule: one step, which has gamma = 1 where a schedule
            begins there, or two for a triangle, which is 0 at both.

    Raises:
        MethodError: unknown schedule, or a number out of range.
    """

    def __init__(
        self,
        relaxation: Relaxation,
        total_steps: int,
        schedule: str | Schedule = "triangle",
        *,
        steps_per_epoch: int | None = None,
        lie_weight: float = 0.01,
        norm_weight: float = 0.01,
        rows: int | None = None,
        scaling: str = "root-sum",
        every: int = 1,
        generator: torch.Generator | None = None,
        penalty_times_gamma: bool = False,
    ) -> None:
        if total_steps < 1:
            raise MethodError(
                f"total_steps is {total_steps}; give the number of optimizer steps of the training, >= 1"
            )
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise MethodError(
                f"steps_per_epoch is {steps_per_epoch}; give a number >= 1, or None to change every step"
            )
        self.schedule = resolve(schedule)
        regularizer = None
        if lie_weight != 0.0 or norm_weight != 0.0:
            regularizer = LieDerivative(
                relaxation,
                lie_weight,
                norm_weight,
                rows=rows,
                scaling=scaling,
                generator=generator,
                every=every,
            )
        super().__init__(relaxation, regularizer)
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.penalty_times_gamma = penalty_times_gamma
        self.steps = 0
        for residual in relaxation.residuals.values():
            residual.fix_gamma()
        self._apply()
        self._warn_if_too_short()

    def _points(self) -> int:
        """How many values the schedule is asked for: steps, or epochs."""
        return (
            self.total_steps if self.steps_per_epoch is None else -(-self.total_steps // self.steps_per_epoch)
        )

    def _warn_if_too_short(self) -> None:
        points, unit = self._points(), "steps" if self.steps_per_epoch is None else "epochs"
        if points > 2:
            return
        values = [float(self.schedule(float(i))) for i in range(points)]
        if points == 1 and values[0] != 0.0 and float(self.schedule(1.0)) != values[0]:
            what = f"its whole training has gamma = {values[0]:g}, and the network is projected from there"
        elif not any(values) and float(self.schedule(0.5)) != 0.0:
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

    def gamma_at(self, step: int) -> float:
        """The strength of step `step` (0-based).

        Raises:
            MethodError: the schedule gave something else than a finite number.
        """
        done, last = step, self.total_steps - 1
        if self.steps_per_epoch is not None:
            done, last = step // self.steps_per_epoch, self._points() - 1
        progress = min(done / last, 1.0) if last > 0 else float(done > 0)
        value = float(self.schedule(progress))
        if not math.isfinite(value):
            raise MethodError(
                f"the schedule gave {value} at progress {progress}; it must give a finite strength"
            )
        return value

    @property
    def gamma(self) -> float:
        """The strength of the step that comes next."""
        return self.gamma_at(self.steps)

    def _apply(self) -> None:
        self.relaxation.set_gamma(self.gamma)

    def _term(self) -> Tensor:
        return self._gammas().new_zeros(())

    def _regularizer_weight(self) -> float:
        return self.gamma if self.penalty_times_gamma else 1.0

    def _advance(self) -> None:
        self.steps += 1
        self._apply()

    def _state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def _load(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        self._apply()
