"""Resilient ACE (arXiv 2505.13631, Algorithm 2): inequality constraints, for partially symmetric data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from equirelax.errors import MethodError
from equirelax.methods.dual import DualAscent
from equirelax.methods.lagrangian import Lagrangian
from equirelax.methods.registry import register
from equirelax.settings import POSITIVE, within

if TYPE_CHECKING:
    from equirelax.relaxation import Relaxation
    from equirelax.relaxation.regularizers import Regularizer


@register(
    "resilient",
    "ACE, Algorithm 2: |gamma| <= u with a price on u; deployed relaxed, names layers that break symmetry",
)
class ResilientACE(Lagrangian):
    """min J0(theta, gamma) + (rho/2) ||u||^2 subject to |gamma_i| <= u_i.

    Start: gamma = 1, u = 0, lambda = 0. With every right-hand side at time t:

        gamma_i  <- gamma_i  - eta_p (grad_gamma_i J0 + lambda_i sign(gamma_i))   your optimizer; sign(0) = 0
        u_i      <- u_i      - eta_p (rho u_i - lambda_i)                         the method, eta_p = primal_lr
        lambda_i <- [lambda_i + eta_d (|gamma_i| - u_i)]_+                        the method

    At the solution u_i = lambda_i / rho: a large multiplier indicates a layer whose data break the symmetry.
    The network is deployed with its residuals.

    `form` chooses between Algorithm 2 ("algorithm") and the variants in the released code:

        "released", on N-body: gamma and u descend (rho + 1) u^2 - lambda u + (lambda - u) |gamma|, u by Adam;
            lambda_i <- [lambda_i + eta_d (|gamma_i| - 2 u_i)]_+
        "clamped", on motion capture: Algorithm 1 with lambda_i <- [lambda_i + eta_d gamma_i]_+, without slacks: only
            gamma_i <= 0 is enforced

    The price of the slacks adds the damping that Algorithm 1 lacks. With small steps and eta_d below about rho / 4 it
    also solves a J0 that is linear in gamma; above that it oscillates.

    Options, with h_i = |gamma_i| - u_i and mu_i = [lambda_i + kappa_p h_i(t-1)]_+ (`pi`; mu = lambda without
    it):

        augmented c:  constraint i adds ([mu_i + c h_i]_+^2 - mu_i^2) / (2c)   (Nocedal & Wright, eq. 17.65)

    so that m_i = [mu_i + c h_i]_+ replaces lambda_i in the steps of gamma and of u.

    `penalty()` is the sum of mu_i |gamma_i| (plus, when augmented, the rest of that term), without the terms that depend
    only on u.

    Args:
        relaxation: The relaxed model. Every gamma is learnt from now on.
        settings: `Settings`, or None to give them by name.
        regularizer: Optional regulariser of the residuals.
        fields: Settings by name. `primal_lr` is required here.

    Raises:
        MethodError: A setting is unknown, missing or out of range.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(Lagrangian.Settings):
        """Settings of Algorithm 2.

        Attributes:
            primal_lr: Step size of the slacks (eta_p), in the paper the same as that of gamma; null takes the learning rate of
                the run. Its product with rho is below 2, so that the slacks converge.
            rho: Weight of the slacks' cost (rho/2) ||u||^2.
            form: Algorithm 2 of the paper (algorithm), or its variants in the released code for N-body (released) and motion
                capture (clamped); see `ResilientACE`. Only algorithm supports `augmented` and `pi`.
        """

        primal_lr: float | None = within(POSITIVE, None)
        rho: float = within(POSITIVE, 1.0)
        form: Literal["algorithm", "released", "clamped"] = "algorithm"

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.primal_lr is not None and not self.primal_lr * self.rho < 2.0:
                raise MethodError(
                    f"primal_lr is {self.primal_lr} and rho is {self.rho}; their product must be below 2 for the slacks "
                    f"to settle"
                )
            if self.form != "algorithm" and (self.augmented or self.pi):
                raise MethodError(
                    f"form is {self.form!r}, which has neither augmented ({self.augmented}) nor pi ({self.pi})"
                )

    settings: Settings
    deploys_relaxed: ClassVar[bool] = True

    def __init__(
        self,
        relaxation: Relaxation,
        settings: Settings | None = None,
        *,
        regularizer: Regularizer | None = None,
        **fields: Any,
    ) -> None:
        own = self.Settings.given(settings, fields)
        if own.primal_lr is None:
            raise MethodError("primal_lr must be given: the learning rate of the optimizer that trains gamma")
        super().__init__(relaxation, own, regularizer=regularizer)
        self.primal_lr = own.primal_lr
        self.slack_descent = DualAscent("adam", own.primal_lr)
        self.slacks = torch.zeros_like(self.multipliers)
        self._force: Tensor | None = None

    def constraint(self) -> Tensor:
        """h_i = |gamma_i| - u_i, (n,); the other values of `form` have other constraints."""
        gammas = self._gammas()
        if self.settings.form == "clamped":
            return gammas
        return gammas.abs() - (2.0 if self.settings.form == "released" else 1.0) * self.slacks

    def base_multipliers(self) -> Tensor:
        """mu_i = [lambda_i + kappa_p h_i(t-1)]_+, (n,)."""
        return super().base_multipliers().clamp_min(0.0)

    def effective_multipliers(self) -> Tensor:
        """m_i = [mu_i + c h_i]_+, (n,)."""
        return (self.base_multipliers() + self.settings.augmented * self.constraint()).clamp_min(0.0)

    def _lagrangian_terms(self) -> Tensor:
        mu = self.base_multipliers()
        if self.settings.form == "clamped":
            return mu * self._gammas()
        if self.settings.form == "released":
            return (mu - self.slacks) * self._gammas().abs()
        if not self.settings.augmented:
            return mu * self._gammas().abs()
        quadratic = (mu + self.settings.augmented * self.constraint()).clamp_min(0.0).square() - mu.square()
        return quadratic / (2.0 * self.settings.augmented) + mu * self.slacks

    def _observe_primal(self) -> None:
        self._force = self.effective_multipliers().detach().clone()

    def _step_primal(self, seen: Tensor) -> None:
        force, self._force = self._force, None
        if force is None or self.settings.form == "clamped":
            return
        if self.settings.form == "released":  # seen is |gamma| - 2 u
            gradient = 2.0 * (self.settings.rho + 1.0) * self.slacks - force - (seen + 2.0 * self.slacks)
            self.slack_descent.step(self.slacks, -gradient)
        else:
            self.slacks.sub_(self.primal_lr * (self.settings.rho * self.slacks - force))

    def _project(self) -> None:
        self.multipliers.clamp_(min=0.0)

    def _state(self) -> dict[str, Any]:
        own = {"slack_descent": self.slack_descent.state_dict()} if self.settings.form == "released" else {}
        return {**super()._state(), **own}

    def _load(self, state: dict[str, Any]) -> None:
        if self.settings.form == "released":
            self.slack_descent.check_state(state["slack_descent"], self.slacks.numel())
        super()._load(state)
        if self.settings.form == "released":
            self.slack_descent.load_state_dict(state["slack_descent"], self.slacks)

    def state_vectors(self) -> dict[str, Tensor]:
        """See `Method`. The slacks are included."""
        return {**super().state_vectors(), "slacks": self.slacks}

    def _vectors(self) -> dict[str, Tensor]:
        return {**super()._vectors(), "slack": self.slacks}
