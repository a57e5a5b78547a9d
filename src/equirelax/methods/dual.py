"""Ascent on multipliers by torch's optimizers: gradient ascent as in the ACE paper, or Adam as in ACE's released code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from equirelax.errors import MethodError
from equirelax.files import did_you_mean

OPTIMIZERS = ("sgd", "adam")
BETAS = (0.9, 0.999)
MOMENTS = {"first": ("exp_avg", -1), "second": ("exp_avg_sq", 1)}
"""Key of a saved state -> torch's name and sign: with `maximize`, torch averages the negated gradients."""


class DualAscent:
    """`lambda <- lambda + eta_d g` ("sgd"), or an ascending Adam step (Kingma & Ba, Algorithm 1).

    Args:
        optimizer: "sgd" or "adam".
        lr: eta_d > 0. It may be changed between steps.
        eps: Adam's epsilon > 0.

    Raises:
        MethodError: the optimizer is unknown, or a number is out of range.
    """

    def __init__(self, optimizer: str, lr: float, eps: float = 1e-8) -> None:
        if optimizer not in OPTIMIZERS:
            hint = did_you_mean(optimizer, OPTIMIZERS)
            raise MethodError(f"no dual optimizer {optimizer!r}; there are {', '.join(OPTIMIZERS)}.{hint}")
        if not lr > 0.0 or not eps > 0.0:
            raise MethodError(f"dual_lr is {lr} and dual_eps is {eps}; both must be > 0")
        self.optimizer, self.lr, self.eps = optimizer, lr, eps
        self._moving: Tensor | None = None
        self._torch: torch.optim.Optimizer | None = None

    def step(self, multipliers: Tensor, gradient: Tensor) -> None:
        """Move `multipliers` (n,) in place along `gradient` (n,), the constraint's value."""
        optimizer = self._torch
        if optimizer is None or self._moving is not multipliers:
            optimizer = self._follow(multipliers, self.state_dict())
        optimizer.param_groups[0]["lr"] = self.lr
        multipliers.grad = gradient.detach()
        optimizer.step()
        multipliers.grad = None

    def _follow(self, multipliers: Tensor, state: dict[str, Any]) -> torch.optim.Optimizer:
        """Make an optimizer that continues from a saved state, with moments in the dtype and on the device of `multipliers`."""
        self._moving = multipliers
        if self.optimizer == "sgd":
            self._torch = torch.optim.SGD([multipliers], lr=self.lr, maximize=True)
            return self._torch
        self._torch = torch.optim.Adam([multipliers], lr=self.lr, betas=BETAS, eps=self.eps, maximize=True)
        if all(state[key] is not None for key in MOMENTS):
            # torch's own load_state_dict requires a state of the same parameter groups
            self._torch.state[multipliers] = {
                "step": torch.tensor(float(state["count"])),
                **{name: sign * state[key].to(multipliers) for key, (name, sign) in MOMENTS.items()},
            }
        return self._torch

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's name, step count and moments of the gradients given to `step` (None before Adam's first step)."""
        adam = {} if self._torch is None or self._moving is None else self._torch.state.get(self._moving, {})
        moments = {key: sign * adam[name] if name in adam else None for key, (name, sign) in MOMENTS.items()}
        return {"optimizer": self.optimizer, "count": int(adam.get("step", 0)), **moments}

    def check_state(self, state: dict[str, Any], size: int) -> None:
        """Raise MethodError unless `state` is of the same optimizer and for `size` multipliers."""
        if state.get("optimizer") != self.optimizer:
            raise MethodError(
                f"the state was saved with dual_optimizer={state.get('optimizer')!r}, this method has "
                f"{self.optimizer!r}; build it with the one that was saved"
            )
        for key in ("first", "second"):
            moment = state.get(key)
            if moment is not None and moment.numel() != size:
                raise MethodError(
                    f"the dual optimizer's {key!r} has shape {tuple(moment.shape)}, expected {size} entries"
                )

    def load_state_dict(self, state: dict[str, Any], like: Tensor) -> None:
        """Continue from a state that `check_state` accepted, with the multipliers `like`."""
        self._follow(like, state)
