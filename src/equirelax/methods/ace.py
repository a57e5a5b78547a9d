"""ACE with equality constraints (arXiv 2505.13631, Algorithm 1), for data with the full symmetry."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from equirelax.methods.lagrangian import Lagrangian
from equirelax.methods.registry import register


@register("ace", "ACE, Algorithm 1: learnt strengths, gamma = 0 as a constraint; deployed projected")
class ACE(Lagrangian):
    """min J0(theta, gamma) subject to gamma_i = 0, by gradient descent-ascent on J0 + sum_i lambda_i gamma_i.

    Start: gamma = 1, lambda = 0. With every right-hand side at time t:

        theta    <- theta    - eta_p grad_theta J0                  your optimizer
        gamma_i  <- gamma_i  - eta_p (grad_gamma_i J0 + lambda_i)   your optimizer, by `penalty()`
        lambda_i <- lambda_i + eta_d gamma_i                        the method, gamma as `penalty()` saw it

    Deploy with gamma := 0 (`project`). The plain form oscillates if J0's curvature in gamma is below eta_d,
    and diverges if J0 is linear in gamma. Two options damp it:

        augmented c:  penalty = sum_i lambda_i gamma_i + (c/2) gamma_i^2
        pi kappa_p:   penalty = sum_i mu_i gamma_i,  mu_i = lambda_i + kappa_p gamma_i(t-1)   see `Lagrangian`

    The augmented term vanishes at gamma = 0, so it changes neither the solution nor its multiplier
    (lambda_i* = -grad_gamma_i J0 at gamma = 0). Away from the solution, lambda_i + c gamma_i estimates the
    multiplier ("effective_multiplier" in the logs). The linear problem with SGD converges for c > eta_d (and
    eta_p c < 2).
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(Lagrangian.Settings):
        """Settings of Algorithm 1, which are those that both algorithms share."""

    settings: Settings

    def constraint(self) -> Tensor:
        """h_i = gamma_i, (n,)."""
        return self._gammas()

    def effective_multipliers(self) -> Tensor:
        """lambda_i + kappa_p gamma_i(t-1) + c gamma_i, (n,)."""
        return self.base_multipliers() + self.settings.augmented * self._gammas()

    def _lagrangian_terms(self) -> Tensor:
        gammas = self._gammas()
        terms = self.base_multipliers() * gammas
        return terms + 0.5 * self.settings.augmented * gammas.square() if self.settings.augmented else terms
