"""A strength that swings around 0: the course that ACE's gamma takes on N-body, given instead of learnt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from equirelax.methods.base import Method
from equirelax.methods.registry import register
from equirelax.settings import COUNT, COUNT_OR_NONE, FINITE, within

if TYPE_CHECKING:
    from equirelax.relaxation import Relaxation
    from equirelax.relaxation.regularizers import Regularizer


@register("swing", "one strength that swings around 0, and stays there from a step on; this project's own")
class Swing(Method):
    """gamma swings around 0, the same for every residual, and stays at 0 from a step on.

        gamma(t) = amplitude * cos(2 pi (t / period + phase)),   t = 0, 1, ... counts the optimizer's steps
        gamma(t) = 0 exactly                                     for t >= finish

    With phase 0 gamma is 0 at t = period * (1/4 + k/2), k = 0, 1, ...: a `finish` there stops it without a jump. The gamma that
    ACE (arXiv 2505.13631) learns on N-body swings like this.

    On N-body it was confirmed to help with amplitude 0.4, a period of 7/30 of the training's steps, phase 0 and no finish, on
    `MLP` residuals, with averages of the weights over about half a swing beside the raw weights. Without averages the projected
    network is good at some moments of a swing only, so that frequent validation must find one. docs/explanation/when_to_relax.md
    has all results, and docs/explanation/mathematics.md what a swing does in the smallest network.

    Args:
        relaxation: The relaxed model; a gamma that was learnt is fixed again.
        settings: `Settings`, or None to give them by name.
        regularizer: Optional regulariser of the residuals.
        fields: Settings by name.

    Raises:
        MethodError: A setting is unknown, missing or out of range.

    Examples:
        >>> import torch, equirelax as er
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False))
        >>> relaxation = er.relax(model, er.Layers(declare=er.Linear("0", "1x1o", "1x1o"), residual=er.MLP()))
        >>> method = er.Swing(relaxation, period=2100)
        >>> [round(method.gamma_at(step), 3) for step in (0, 525, 1050, 2100)]
        [0.4, 0.0, -0.4, 0.4]
    """

    capturable: ClassVar[bool] = True
    stackable: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Settings(Method.Settings):
        """The course of gamma.

        Attributes:
            amplitude: The largest gamma.
            period: Steps of one full swing.
            phase: The share of a period by which the course is ahead: 0 starts at the amplitude, 0.75 at 0 and rising.
            finish: The step, counted from 0, from which gamma is 0; null never ends the swing.
        """

        amplitude: float = within(FINITE, 0.4)
        period: int = within(COUNT)
        phase: float = within(FINITE, 0.0)
        finish: int | None = within(COUNT_OR_NONE, None)

    settings: Settings

    def __init__(
        self,
        relaxation: Relaxation,
        settings: Settings | None = None,
        *,
        regularizer: Regularizer | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(relaxation, settings, regularizer=regularizer, **fields)
        self.steps = 0
        for residual in relaxation.residuals.values():
            residual.fix_gamma()
        self._apply()

    def gamma_at(self, step: int) -> float:
        """The strength at a step, counted from 0."""
        own = self.settings
        if own.finish is not None and step >= own.finish:
            return 0.0
        return own.amplitude * math.cos(2.0 * math.pi * (step / own.period + own.phase))

    def _apply(self) -> None:
        self.relaxation.set_gamma(self.gamma_at(self.steps))

    def _term(self) -> Tensor:
        return self._gammas().new_zeros(())

    def _advance(self) -> None:
        self.steps += 1
        self._apply()

    def _state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def _load(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
