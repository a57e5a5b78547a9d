"""Resilient ACE (arXiv 2505.13631, Algorithm 2): inequality constraints, for partly symmetric data."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from equirelax.errors import MethodError
from equirelax.methods.lagrangian import Lagrangian
from equirelax.methods.registry import register

if TYPE_CHECKING:
    from equirelax.penalties import Regularizer
    from equirelax.relaxation import Relaxation


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

    At the solution u_i = lambda_i / rho: a large multiplier names a layer whose data break the symmetry.
    Deployed with gamma kept. (The released N-body code moves lambda by |gamma| - 2u, and its motion-capture
    command runs Algorithm 1 with lambda >= 0; neither is done here.)

    The price of the slacks damps what Algorithm 1 lacks: a J0 that is linear in gamma is solved too, for
    small steps if eta_d < rho / 4 (about); above that it circles.

    Options, with h_i = |gamma_i| - u_i and mu_i = [lambda_i + kappa_p h_i(t-1)]_+ (`pi`; mu = lambda without
    it):

        augmented c:  constraint i adds ([mu_i + c h_i]_+^2 - mu_i^2) / (2c)   (Nocedal & Wright, eq. 17.65)

    so that m_i = [mu_i + c h_i]_+ stands for lambda_i in the steps of gamma and of u.

    `penalty()` is mu_i |gamma_i| summed (plus, when augmented, the rest of that term): what depends on u
    alone is left out.

    Args:
        relaxation, dual_lr, dual_optimizer, dual_eps, augmented, pi, initial, reduction, regularizer: see
            `Lagrangian`.
        primal_lr: learning rate of u, > 0: the paper's eta_p, so the same as gamma's. primal_lr * rho must be
            below 2.
        rho: price of the slacks, > 0.

    Raises:
        MethodError: unknown name, or a number out of range.
    """

    deploys_relaxed: ClassVar[bool] = True

    def __init__(
        self,
        relaxation: Relaxation,
        dual_lr: float,
        primal_lr: float,
        *,
        rho: float = 1.0,
        dual_optimizer: str = "sgd",
        dual_eps: float = 1e-8,
        augmented: float = 0.0,
        pi: float = 0.0,
        initial: float | None = 1.0,
        reduction: str = "sum",
        regularizer: Regularizer | None = None,
    ) -> None:
        if not primal_lr > 0.0 or not rho > 0.0 or not primal_lr * rho < 2.0:
            raise MethodError(
                f"primal_lr is {primal_lr} and rho is {rho}; both must be > 0, "
                f"and their product below 2 for the slacks to settle"
            )
        super().__init__(
            relaxation,
            dual_lr,
            dual_optimizer=dual_optimizer,
            dual_eps=dual_eps,
            augmented=augmented,
            pi=pi,
            initial=initial,
            reduction=reduction,
            regularizer=regularizer,
        )
        self.primal_lr, self.rho = primal_lr, rho
        self.slacks = torch.zeros_like(self.multipliers)
        self._force: Tensor | None = None

    def constraint(self) -> Tensor:
        """h_i = |gamma_i| - u_i, (n,)."""
        return self._gammas().abs() - self.slacks

    def base_multipliers(self) -> Tensor:
        """mu_i = [lambda_i + kappa_p h_i(t-1)]_+, (n,)."""
        return super().base_multipliers().clamp_min(0.0)

    def effective_multipliers(self) -> Tensor:
        """m_i = [mu_i + c h_i]_+, (n,)."""
        return (self.base_multipliers() + self.augmented * self.constraint()).clamp_min(0.0)

    def _lagrangian_terms(self) -> Tensor:
        mu = self.base_multipliers()
        if not self.augmented:
            return mu * self._gammas().abs()
        quadratic = (mu + self.augmented * self.constraint()).clamp_min(0.0).square() - mu.square()
        return quadratic / (2.0 * self.augmented) + mu * self.slacks

    def _observe_primal(self) -> None:
        self._force = self.effective_multipliers().detach().clone()

    def _step_primal(self, seen: Tensor) -> None:
        force, self._force = self._force, None
        if force is not None:
            self.slacks = self.slacks - self.primal_lr * (self.rho * self.slacks - force)

    def _project(self) -> None:
        self.multipliers.clamp_(min=0.0)

    def _state_vectors(self) -> dict[str, Tensor]:
        return {**super()._state_vectors(), "slacks": self.slacks}

    def _vectors(self) -> dict[str, Tensor]:
        return {**super()._vectors(), "slack": self.slacks}
