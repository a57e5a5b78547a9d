"""A bias-corrected exponential moving average of the trained weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import CheckpointError
from equirelax.relaxation import Residual


class Averages:
    """A second network whose weights are averages of the trained network's.

    With w_s the weights after step s, the average after step t is

        m_t = sum_s decay^(t-s) w_s / sum_s decay^(t-s),   s = 1 .. t

    which is m_t = m_(t-1) + (1 - decay) / (1 - decay^t) (w_t - m_(t-1)). The weights at the start count no more than
    any others, and m_1 = w_1. Strengths (gamma) and buffers are copied, not averaged: the averaged network is relaxed
    as much as the trained one.

    Args:
        model: The network that is trained, on its device.
        decay: Factor of the past at every step, in (0, 1).

    Attributes:
        model: The averaged network, relaxed like the trained one.
        steps: Number of weights in the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.trained, self.decay = model, decay
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the present weights to the average, after an optimizer step."""
        share = (1 - self.decay) / (1 - self.decay ** (self.steps + 1))
        self.steps += 1
        torch._foreach_lerp_(list(self.model.parameters()), list(self.trained.parameters()), share)
        for pairs in (self._buffers(), self._strengths()):
            for averaged, trained in pairs:
                averaged.copy_(trained)

    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.model.buffers(), self.trained.buffers(), strict=True))

    def _strengths(self) -> list[tuple[Tensor, Tensor]]:
        networks = (self.model, self.trained)
        averaged, trained = ([m.gamma for m in net.modules() if isinstance(m, Residual)] for net in networks)
        return list(zip(averaged, trained, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The averaged network's state and the number of steps in the average."""
        return {"steps": self.steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue from `state_dict()`.

        Raises:
            CheckpointError: There is no average to continue.
        """
        if state is None:
            raise CheckpointError(
                "The checkpoint holds no averaged weights. Start the run anew, with its ema."
            )
        self.steps = int(state["steps"])
        self.model.load_state_dict(state["model"])
