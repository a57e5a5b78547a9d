"""Strengths that follow a symmetry score: a layer is relaxed if the data break the symmetry there, and else exactly strict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from equirelax.errors import MethodError
from equirelax.methods.base import Method
from equirelax.methods.registry import register
from equirelax.relaxation import Relaxation
from equirelax.settings import COUNT, NOT_NEGATIVE, Range, shown, within

if TYPE_CHECKING:
    from equirelax.relaxation.regularizers import Regularizer

STRENGTH = Range(-1000, 1000)
"""The range of gamma: larger values overflow in low precision."""


class Measured(Protocol):
    """The part of `equirelax.auditing.SymmetryScore` that the method needs."""

    @property
    def examples(self) -> int:
        """The number of examples, n."""

    @property
    def ratios(self) -> Mapping[str, float]:
        """Key of a residual -> r."""


Measure = Callable[[Relaxation], Measured]


@register(
    "symmetry-following",
    "gamma follows a score of the data's asymmetry, layer by layer; deployed relaxed; this project's own",
)
class SymmetryFollowing(Method):
    """gamma of each layer follows how strongly the data break the symmetry there.

    After every k-th step the score is measured, a ratio r between 0 and 1 from n examples, and

        gamma_i <- (1 - eta) gamma_i + eta f(r_i),       f(r) = largest max(r - c/n, 0) / (1 - c/n),
        gamma_i <- 0 exactly where |gamma_i| < threshold.

    On symmetric data r is 0 up to noise of size 1/n. While it stays in the dead zone ``r <= c/n``, gamma falls as (1 - eta)^t and
    ends at exactly 0, so that the network that is deployed with its residuals is the strict one. The guarantees of the rule are
    proved in docs/explanation/symmetry_score.md. Residuals that the score leaves out count as r = 0.

    Measure on examples that are not used for training and not moved by random group elements. A measurement costs a forward
    pass over them and, for a batch of n examples, one backward pass for every bit of n - 1, plus one:

        method = er.methods.SymmetryFollowing(
            relaxation, lambda relaxation: er.symmetry_score(relaxation.model, held_out, loss), measure_every=100
        ).attach(optimizer)

    Under DDP every rank measures on separate examples, and all ranks follow the common score.

    Args:
        relaxation: The relaxed model. The rule sets every gamma from now on.
        measure: A function from the relaxation to its score, as `equirelax.symmetry_score` returns it; required.
        settings: `Settings`, or None to give them by name.
        regularizer: Optional regulariser of the residuals.
        fields: Settings by name.

    Attributes:
        steps: Steps taken.
        ratios: r of every residual at the last measurement, (residuals,); None before the first.

    Raises:
        MethodError: A setting is unknown or out of range, or `measure` is missing or not a function. At a step: `measure`
            returned something else, scored residuals of another model, or used so few examples that c/n is 1 or more.
    """

    deploys_relaxed: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Settings(Method.Settings):
        """The rule.

        Attributes:
            measure_every: Steps from one measurement to the next (k).
            rate: The fraction of the distance to its target that gamma moves per measurement (eta).
            dead_zone: c; ratios up to c/n count as noise.
            largest: gamma if all examples pull in the same direction (r = 1).
            threshold: A smaller gamma is set to 0.
            initial: Initial gamma.
        """

        measure_every: int = within(COUNT, 100)
        rate: float = within(Range(0, 1, open_least=True), 0.1)
        dead_zone: float = within(NOT_NEGATIVE, 4.0)
        largest: float = within(STRENGTH, 1.0)
        threshold: float = within(NOT_NEGATIVE, 1e-3)
        initial: float = within(STRENGTH, 1.0)

    settings: Settings

    def __init__(
        self,
        relaxation: Relaxation,
        measure: Measure | None = None,
        settings: Settings | None = None,
        *,
        regularizer: Regularizer | None = None,
        **fields: Any,
    ) -> None:
        self._check_handle(relaxation)
        if not callable(measure):
            raise MethodError(
                f"SymmetryFollowing: measure is {shown(measure)}; expected a function of the relaxation, such as "
                f"lambda relaxation: er.symmetry_score(relaxation.model, held_out, loss)"
            )
        super().__init__(relaxation, settings, regularizer=regularizer, **fields)
        self.measure = measure
        self.steps = 0
        self.ratios: Tensor | None = None
        for residual in relaxation.residuals.values():
            residual.fix_gamma()
        relaxation.set_gamma(self.settings.initial)

    def target(self, ratio: float, examples: int) -> float:
        """f(r), the value that gamma moves towards.

        Raises:
            MethodError: There are so few examples that every ratio counts as noise.
        """
        noise = self.settings.dead_zone / max(examples, 1)
        if examples < 2 or noise >= 1:
            raise MethodError(
                f"SymmetryFollowing: dead_zone is {self.settings.dead_zone}, and the score was measured on {examples} examples: "
                f"every ratio would count as noise. Measure on more, several times that number"
            )
        return self.settings.largest * max(ratio - noise, 0.0) / (1 - noise)

    def _follow(self) -> None:
        found = self.measure(self.relaxation)
        if not hasattr(found, "ratios") or not hasattr(found, "examples"):
            raise MethodError(
                f"SymmetryFollowing: measure(relaxation) gave {shown(found)}; expected the result of er.symmetry_score"
            )
        other = sorted(set(found.ratios) - set(self.paths))
        if other:
            raise MethodError(
                f"SymmetryFollowing: the score is of residuals that the method does not drive: {', '.join(other[:5])}; it drives "
                f"{', '.join(self.paths[:5])}. Score relaxation.model, and not a module around it"
            )
        own, ratios = self.settings, [found.ratios.get(key, 0.0) for key in self.paths]
        if not all(math.isfinite(ratio) for ratio in ratios):
            raise MethodError(f"SymmetryFollowing: a ratio of the score is NaN or infinity: {found.ratios}")
        self.ratios = torch.tensor(ratios, dtype=torch.float64)
        for residual, ratio in zip(self.relaxation.residuals.values(), ratios, strict=True):
            gamma = (1 - own.rate) * float(residual.gamma) + own.rate * self.target(ratio, found.examples)
            residual.set_gamma(gamma if abs(gamma) >= own.threshold else 0.0)

    def _term(self) -> Tensor:
        return self._gammas().new_zeros(())

    def _advance(self) -> None:
        self.steps += 1
        if self.steps % self.settings.measure_every == 0:
            self._follow()

    def _state(self) -> dict[str, Any]:
        return {"steps": self.steps, "ratios": self.ratios}

    def _load(self, state: dict[str, Any]) -> None:
        ratios = state["ratios"]
        if ratios is not None and tuple(ratios.shape) != (len(self.paths),):
            raise MethodError(
                f"the state has ratios of shape {tuple(ratios.shape)}; expected {(len(self.paths),)}, one per residual"
            )
        self.steps, self.ratios = int(state["steps"]), ratios

    def _vectors(self) -> dict[str, Tensor]:
        return {} if self.ratios is None else {"ratio": self.ratios}
