"""Ascent on multipliers: gradient ascent as ACE prints it, or Adam as ACE's released code uses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from equirelax.errors import MethodError
from equirelax.files import did_you_mean

OPTIMIZERS = ("sgd", "adam")
BETA_1, BETA_2 = 0.9, 0.999


class DualAscent:
    """`lambda <- lambda + eta_d g` ("sgd"), or an ascending Adam step (Kingma & Ba, Algorithm 1).

    Args:
        optimizer: "sgd" or "adam".
        lr: eta_d > 0; may be changed between steps.
        eps: Adam's epsilon > 0.

    Raises:
        MethodError: unknown optimizer, or a number out of range.
    """

    def __init__(self, optimizer: str, lr: float, eps: float = 1e-8) -> None:
        if optimizer not in OPTIMIZERS:
            hint = did_you_mean(optimizer, OPTIMIZERS)
            raise MethodError(f"no dual optimizer {optimizer!r}; there are {', '.join(OPTIMIZERS)}.{hint}")
        if not lr > 0.0 or not eps > 0.0:
            raise MethodError(f"dual_lr is {lr} and dual_eps is {eps}; both must be > 0")
        self.optimizer, self.lr, self.eps = optimizer, lr, eps
        self.count = 0
        self._moments: tuple[Tensor, Tensor] | None = None

    def step(self, multipliers: Tensor, gradient: Tensor) -> None:
        """Move `multipliers` (n,) in place along `gradient` (n,), the constraint's value."""
        if self.optimizer == "sgd":
            multipliers.add_(gradient, alpha=self.lr)
            return
        if self._moments is None:
            self._moments = (torch.zeros_like(multipliers), torch.zeros_like(multipliers))
        first, second = self._moments
        first, second = self._moments = first.to(multipliers), second.to(multipliers)
        self.count += 1
        first.lerp_(gradient, 1.0 - BETA_1)
        second.mul_(BETA_2).addcmul_(gradient, gradient, value=1.0 - BETA_2)
        root = (second.sqrt() / math.sqrt(1.0 - BETA_2**self.count)).add_(self.eps)
        multipliers.addcdiv_(first, root, value=self.lr / (1.0 - BETA_1**self.count))

    def state_dict(self) -> dict[str, Any]:
        """Optimizer's name, step count and moments (None before the first step of Adam)."""
        first, second = (None, None) if self._moments is None else self._moments
        return {
            "optimizer": self.optimizer,
            "count": self.count,
            "first": None if first is None else first.clone(),
            "second": None if second is None else second.clone(),
        }

    def check_state(self, state: dict[str, Any], size: int) -> None:
        """Raise MethodError unless `state` is of the same optimizer and of `size` multipliers."""
        if state.get("optimizer") != self.optimizer:
            raise MethodError(
                f"the state was saved with dual_optimizer={state.get('optimizer')!r}, this method has "
                f"{self.optimizer!r}; build it with the one that was saved"
            )
        for key in ("first", "second"):
            moment = state.get(key)
            if moment is not None and tuple(moment.shape) != (size,):
                raise MethodError(
                    f"the dual optimizer's {key!r} has shape {tuple(moment.shape)}, expected {(size,)}"
                )

    def load_state_dict(self, state: dict[str, Any], like: Tensor) -> None:
        """Take a state that `check_state` accepted; moments go to the dtype and device of `like`."""
        self.count = int(state["count"])
        first, second = state["first"], state["second"]
        if first is None or second is None:
            self._moments = None
        else:
            self._moments = (first.to(like, copy=True), second.to(like, copy=True))
