"""The projected network's loss on training batches, compared with the relaxed network's: do the strict weights learn?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import EquirelaxWarning, MethodError
from equirelax.relaxation import Relaxation
from equirelax.settings import COUNT, check, shown

CHECKS = 12
"""Number of measurements that the rule uses, in two halves."""
RATIO = 2.0
STILL = 0.95


def lags(projected: Sequence[float], relaxed: Sequence[float]) -> bool:
    """Whether the projected network has fallen behind and does not catch up.

    P and R are the means of the projected and the relaxed loss in the newer half of the last `CHECKS` pairs, and P' is the
    mean of the projected loss in the older half. The network lags if

        P > 2 R        without the residuals the loss is more than twice as large
        P > 0.95 P'    and it no longer falls

    Args:
        projected, relaxed: Losses of the same batches with the same weights, oldest first.

    Returns:
        Whether it lags; False as long as there are fewer than `CHECKS` pairs.
    """
    if len(projected) < CHECKS or len(relaxed) < CHECKS:
        return False
    half = CHECKS // 2
    before, now = sum(projected[-CHECKS:-half]), sum(projected[-half:])
    return now > RATIO * sum(relaxed[-half:]) and now > STILL * before


class ProjectedLoss:
    """Measures the projected network's loss on training batches, and warns once if it lags behind the relaxed network's.

    Training minimises the relaxed network's loss, but the projected network is deployed. Once the residuals have fitted
    the training data, hardly any gradient is left, and the strict weights stop learning. Add one line to the loop, between
    the backward pass and the optimizer's step:

        watch = er.methods.ProjectedLoss(relaxation, every=100)

        task = criterion(model(x), y)
        loss = task + method.penalty()
        optimizer.zero_grad(); loss.backward()
        watch(task, lambda: criterion(model(x), y))
        optimizer.step()

    Every `every` calls it evaluates the same batch again, without residuals and without gradients of the parameters. The
    network may still derive forces from its energy. Torch's random state, buffers (such as those of batch norm) and modes stay
    as they were. With DDP's `find_unused_parameters`, call it after the backward pass and not before it.

    The warning means that projection removes most of the fit to the training data; `lags` is its rule. That may be good, if
    the residuals have memorised the samples, or bad, if the strict weights are undertrained. Compare `projected` with a
    strict network's error on validation data: docs/how_to/projected_loss.md says what to do if it is no lower.

    Args:
        relaxation: The relaxed model.
        every: Number of calls from one measurement to the next, at least 1. The first call measures. If gamma swings,
            `CHECKS` measurements should span at least one swing.

    Attributes:
        projected: The loss without the residuals at the last measurement; NaN before the first.
        relaxed: The loss with the residuals, likewise.
        lagging: Whether the rule held at the last measurement.

    Raises:
        MethodError: `relaxation` or `every` has the wrong type or value.
    """

    def __init__(self, relaxation: Relaxation, *, every: int = 100) -> None:
        if not isinstance(relaxation, Relaxation):
            raise MethodError(
                f"ProjectedLoss: the relaxation is a {type(relaxation).__name__}; expected what equirelax.relax(model) returns, "
                f"or equirelax.relaxation_of(model)"
            )
        check(every, COUNT, "every", MethodError)
        self.relaxation, self.every = relaxation, every
        self.projected = self.relaxed = math.nan
        self.lagging = False
        self._calls = 0
        self._warned = False
        self._history: list[tuple[float, float]] = []

    def __call__(self, relaxed: Tensor, loss: Callable[[], Tensor]) -> bool:
        """Count a step, and measure if a measurement is due.

        Args:
            relaxed: The task's loss on the batch, without the method's penalty, a scalar.
            loss: A function that computes the loss again from the same batch.

        Returns:
            Whether it measured.

        Raises:
            MethodError: `loss` is not a function, or a loss is not a scalar.

        Warns:
            EquirelaxWarning: The projected network lags, for the first time.
        """
        if not callable(loss):
            raise MethodError(
                f"ProjectedLoss: loss is {shown(loss)}; expected a function that computes the loss anew, such as "
                f"lambda: criterion(model(x), y)"
            )
        self._calls += 1
        if (self._calls - 1) % self.every:
            return False
        # A network that derives forces from an energy needs autograd in its forward, but no gradients of parameters.
        with (
            torch.enable_grad(),
            _frozen(self.relaxation.model),
            untouched(self.relaxation.model),
            self.relaxation.strict(),
        ):
            projected = _scalar(loss(), "the loss that is computed anew")
        self._note(projected, _scalar(relaxed, "the relaxed loss"))
        return True

    def _note(self, projected: float, relaxed: float) -> None:
        self.projected, self.relaxed = projected, relaxed
        if not (math.isfinite(projected) and math.isfinite(relaxed)):
            return  # training itself has diverged
        self._history = [*self._history, (projected, relaxed)][-CHECKS:]
        without, with_residuals = zip(*self._history, strict=True)
        self.lagging = lags(without, with_residuals)
        if self.lagging and not self._warned:
            self._warned = True
            half = CHECKS // 2
            with_, without_ = (sum(values[-half:]) / half for values in (with_residuals, without))
            warnings.warn(
                f"the projected network lags: on training batches its loss stays at {without_:.3g}, over the last {CHECKS} "
                f"measurements ({self.every * CHECKS} steps), and the relaxed one's is {with_:.3g}. The residuals fit the "
                f"training data; the strict weights, which are what projection leaves, learn no more from it. If "
                f"{without_:.3g} is no lower than a strict network's error on validation data, end training with gamma 0, give "
                f"the residuals a smaller learning rate or rank, or rotate every training sample; see "
                f"equirelax.methods.ProjectedLoss",
                EquirelaxWarning,
                stacklevel=3,
            )

    def scalars(self) -> dict[str, float]:
        """The last measurement for logs; empty before the first."""
        if math.isnan(self.projected):
            return {}
        return {"projected": self.projected, "relaxed": self.relaxed}

    def state_dict(self) -> dict[str, Any]:
        """The state in plain Python: the count, the last measurements, and whether it has warned."""
        return {
            "calls": self._calls,
            "warned": self._warned,
            "history": [list(pair) for pair in self._history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._calls, self._warned = int(state["calls"]), bool(state["warned"])
        self._history = [(float(projected), float(relaxed)) for projected, relaxed in state["history"]]
        if self._history:
            self.projected, self.relaxed = self._history[-1]
            self.lagging = lags(*zip(*self._history, strict=True))


def _scalar(loss: Tensor, what: str) -> float:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"has shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"is a {type(loss).__name__}"
        raise MethodError(f"ProjectedLoss: {what} {got}; expected a scalar tensor")
    return float(loss.detach())


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Switch off the parameters' gradients in a block, so that only a network that differentiates itself builds a graph."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Keep calls of the model in a block from changing its buffers and torch's random state, on the CPU and its devices.

    Buffers are replaced by copies instead of being copied back, because a later backward pass may need them.
    """
    places = {p.device for p in model.parameters() if p.device.type != "cpu"}
    kind = next((device.type for device in places), "cuda")
    indices = [device.index for device in places if device.index is not None]
    buffers = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]
    with torch.random.fork_rng(devices=indices, device_type=kind):
        try:
            for module, own in buffers:
                for name, buffer in own.items():
                    module._buffers[name] = None if buffer is None else buffer.clone()
            yield
        finally:
            for module, own in buffers:
                module._buffers.update(own)
