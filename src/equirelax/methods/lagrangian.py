"""The common part of ACE's two algorithms: learnt strengths, one multiplier per residual, and the multipliers' step."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from equirelax.errors import MethodError
from equirelax.methods.base import Method
from equirelax.methods.dual import DualAscent
from equirelax.settings import FINITE, NOT_NEGATIVE, POSITIVE, within

if TYPE_CHECKING:
    from equirelax.relaxation import Relaxation
    from equirelax.relaxation.regularizers import Regularizer


class Lagrangian(Method):
    """Base class of the primal-dual methods: your optimizer moves gamma, the method's step moves the multipliers.

    With h_i(t) the value of constraint i that `penalty()` saw at time t, a step does

        lambda_i(t+1) = lambda_i(t) + eta_d h_i(t)         or Adam's step; inequalities: projected at 0
        mu_i(t+1)     = lambda_i(t+1) + kappa_p h_i(t)     kappa_p = `pi`; mu = lambda for pi = 0

    and the next `penalty()` uses mu. The multipliers are the integral of the constraint's value; the
    PI form adds a proportional term (the nuPI controller of Sohrabi et al., ICML 2024, with nu = 0). It damps
    the oscillation of the plain form as the augmented term does, but with the value of the previous step. For a
    task that is linear in gamma, with SGD as the primal optimizer, it is stable if
    `eta_d < kappa_p (1 - eta_p kappa_p)`.

    Under DDP nothing is communicated: multipliers and slacks are functions of gamma alone, and DDP keeps gamma
    equal on all ranks, so they are equal too.

    Args:
        relaxation: The relaxed model. Every gamma is learnt from now on.
        settings: `Settings`, or None to give them by name.
        regularizer: Optional regulariser of the residuals.
        fields: Settings by name.

    Attributes:
        dual: The ascent on the multipliers. A learning-rate schedule may change `dual.lr`.
        multipliers: lambda, (n,).

    Raises:
        MethodError: A setting is unknown, missing or out of range.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(Method.Settings):
        """Settings that ACE's two algorithms share.

        Attributes:
            dual_lr: Step size of the multipliers (eta_d).
            dual_optimizer: sgd as in the paper, adam as in the released code.
            dual_eps: Epsilon of adam.
            augmented: Weight c of the augmented term (c/2) gamma^2; 0 is the algorithm of the paper.
            pi: Proportional gain kappa_p of the multipliers' PI update; 0 is the algorithm of the paper.
            initial: Initial strength; null keeps the strengths of the residuals.
            reduction: Sum over the residuals (as in the paper) or mean of the multipliers' terms. In both cases the multipliers
                move by the undivided constraint.
        """

        dual_lr: float = within(POSITIVE)
        dual_optimizer: Literal["sgd", "adam"] = "sgd"
        dual_eps: float = within(POSITIVE, 1e-8)
        augmented: float = within(NOT_NEGATIVE, 0.0)
        pi: float = within(NOT_NEGATIVE, 0.0)
        initial: float | None = within(FINITE, 1.0)
        reduction: Literal["sum", "mean"] = "sum"

    settings: Settings
    capturable: ClassVar[bool] = True
    stackable: ClassVar[bool] = True

    def __init__(
        self,
        relaxation: Relaxation,
        settings: Settings | None = None,
        *,
        regularizer: Regularizer | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(relaxation, settings, regularizer=regularizer, **fields)
        own = self.settings
        self.dual = DualAscent(own.dual_optimizer, own.dual_lr, own.dual_eps)
        for residual in relaxation.residuals.values():
            if own.initial is None:
                residual.gamma.requires_grad_(True)
            else:
                residual.learn_gamma(own.initial)
        self.multipliers = torch.zeros_like(self._gammas().detach())
        self.proportional = torch.zeros_like(self.multipliers)
        self._seen: Tensor | None = None

    @abstractmethod
    def constraint(self) -> Tensor:
        """The constraints' values h (n,), with gradients in gamma."""

    @abstractmethod
    def _lagrangian_terms(self) -> Tensor:
        """The constraints' terms of the Lagrangian (n,), with gradients in gamma."""

    @abstractmethod
    def effective_multipliers(self) -> Tensor:
        """The factor (n,) of grad h in gamma's gradient: lambda with its proportional and augmented parts."""

    def base_multipliers(self) -> Tensor:
        """mu = lambda + kappa_p h(t-1), of shape (n,)."""
        return self.multipliers + self.proportional

    def _step_primal(self, seen: Tensor) -> None:
        """Step the method's own primal variables, with right-hand sides at time t."""

    def _project(self) -> None:
        """Project the multipliers onto their feasible set."""

    def state_vectors(self) -> dict[str, Tensor]:
        """The vectors (n,) of the state, on gamma's device and in its dtype."""
        return {"multipliers": self.multipliers, "proportional": self.proportional}

    def _term(self) -> Tensor:
        self._align()
        terms = self._lagrangian_terms()
        return terms.sum() if self.settings.reduction == "sum" else terms.mean()

    def _observe(self) -> None:
        self._align()
        self._seen = self.constraint().detach().clone()
        self._observe_primal()

    def _observe_primal(self) -> None:
        """Record the values at time t that the method's own primal variables need."""

    @torch.no_grad()
    def _advance(self) -> None:
        seen, self._seen = self._seen, None
        if seen is None:
            return
        self._step_primal(seen)
        self.dual.step(self.multipliers, seen)
        self._project()
        self.proportional.copy_(self.settings.pi * seen)  # in place, where a CUDA graph reads it

    def _align(self) -> None:
        """Move the state to the model's device and dtype, if these changed after the method was made."""
        like = self._gammas()
        if self.multipliers.device != like.device or self.multipliers.dtype != like.dtype:
            for key, vector in self.state_vectors().items():
                setattr(self, key, vector.to(device=like.device, dtype=like.dtype))

    def _vectors(self) -> dict[str, Tensor]:
        self._align()
        with torch.no_grad():
            return {"multiplier": self.multipliers, "effective_multiplier": self.effective_multipliers()}

    def _state(self) -> dict[str, Any]:
        vectors = {key: vector.clone() for key, vector in self.state_vectors().items()}
        return {**vectors, "dual": self.dual.state_dict()}

    def _load(self, state: dict[str, Any]) -> None:
        shape = tuple(self.multipliers.shape)
        for key in self.state_vectors():
            saved = state[key]
            if not isinstance(saved, Tensor) or tuple(saved.shape) != shape:
                found = tuple(saved.shape) if isinstance(saved, Tensor) else type(saved).__name__
                raise MethodError(
                    f"{key!r} of the state is {found}; expected {shape}, one entry per residual"
                )
        self.dual.check_state(state["dual"], self.multipliers.numel())
        for key in self.state_vectors():
            setattr(self, key, state[key].to(self.multipliers, copy=True))
        self.dual.load_state_dict(state["dual"], self.multipliers)
        self._seen = None
