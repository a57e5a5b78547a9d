"""Detect NaN, infinity and explosions during training before they are saved, and trace them to a module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from equirelax.errors import EquirelaxError, NonFiniteError
from equirelax_lab.tasks.task import Batch
from equirelax_lab.training.non_finite import first_non_finite, largest_gain
from equirelax_lab.training.objective import Objective

EXPLODED = 1e6
"""A run ends if the mean loss of an epoch is more than this multiple of the loss at the start, as if it were infinite."""


class Divergence:
    """Ends a run whose numbers are no longer finite, or explode.

    A single process on the CPU checks the loss and the gradients of every step before the optimizer's step, so that the
    weights stay finite. On a GPU this would wait for the device, and with several processes the others would wait. There
    the means of an epoch and the weights are checked at its end, before anything is saved.

    Args:
        objective: The objective of training; a failure is traced by computing it again on the last batch.
        every_step: Whether every step is checked.

    Attributes:
        first_loss: The loss at the start, with which an explosion is measured: the first step's, or, if steps are not
            checked, the first epoch's mean, which all processes share. None before.
    """

    def __init__(self, objective: Objective, every_step: bool) -> None:
        self.objective, self.every_step = objective, every_step
        self.first_loss: float | None = None
        self._last: tuple[Batch, int, int] | None = None
        self._epoch = 0
        self._losses: list[Tensor] = []
        self._exploded = False

    def begin(self, batch: Batch, index: int, step: int, epoch: int) -> None:
        """Record part `index` of epoch `epoch` (both from 0), which is computed next."""
        self._last, self._epoch = (batch, index, step), epoch

    def check_loss(self, loss: Tensor) -> None:
        """Check the loss of a part, or keep it until the end of the epoch if steps are not checked."""
        if not self.every_step:
            self._losses.append(loss.detach())
            return
        if not math.isfinite(value := float(loss.detach())):
            raise NonFiniteError(f"The training loss is {value} in {self._step()}.")
        if self.first_loss is None:
            self.first_loss = self.objective.loader.parts * value

    def check_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Check the gradients, if steps are checked."""
        if not self.every_step:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        # One sum over all of them; the entries are checked one by one only if it overflows.
        total = torch.nn.utils.get_total_norm(gradients, 1.0)
        if not math.isfinite(float(total)) and not all(bool(torch.isfinite(g).all()) for g in gradients):
            raise NonFiniteError(f"A gradient is not finite in {self._step()}, though the loss is.")

    def check_epoch(self, means: Mapping[str, float], finite: bool) -> None:
        """Check the means of the epoch and the weights at its end.

        Args:
            means: The loss and the penalty.
            finite: Whether all weights are finite.

        Raises:
            NonFiniteError: A mean or a weight is not finite, or the loss is more than `EXPLODED` times that at the start.
        """
        losses, self._losses = self._losses, []
        epoch = f"epoch {self._epoch + 1}"
        for name, value in means.items():
            if not math.isfinite(value):
                bad = [k for k, loss in enumerate(losses) if not math.isfinite(float(loss))]
                first = f"step {bad[0] // self.objective.loader.parts + 1} of " if bad else ""
                raise NonFiniteError(f"The training {name.rpartition('/')[2]} is {value} in {first}{epoch}.")
        if not finite:
            raise NonFiniteError(f"A weight is not finite at the end of {epoch}.")
        loss = means["train/loss"]
        if self.first_loss is None:
            self.first_loss = loss
        if self.first_loss > 0 and loss > EXPLODED * self.first_loss:
            self._exploded = True
            raise NonFiniteError(
                f"The training loss exploded: its mean is {loss:.3g} in {epoch}, and was {self.first_loss:.3g} at the "
                f"start (the limit is {EXPLODED:.0e} times that)."
            )

    def explains(self, error: Exception) -> bool:
        """Whether numbers that are not finite, or that exploded, are the cause of an error."""
        numbers = isinstance(error, NonFiniteError)
        return numbers or (isinstance(error, RuntimeError) and not finite_weights(self.objective.model))

    def origin(self) -> str:
        """Where the failure began, as a sentence to append to the error's; empty if the last batch does not show it.

        Call it while the network is still on its device.
        """
        if self._last is None:
            return ""
        last, model = self._last, self.objective.model

        def objective() -> Tensor:
            return self.objective(*last)[0]

        try:
            if self._exploded:
                gain = largest_gain(model, objective)
                return "" if gain is None else f" The layer that amplifies most: {gain}."
            origin = first_non_finite(model, objective)
        except EquirelaxError:  # the model rejects this batch, and its error says why
            return ""
        if origin is None or origin.what == "loss":
            return self._in_method() or ("" if origin is None else f" It begins in {origin}.")
        if origin.what == "weight":
            return f" It begins in {origin}{_further(model)}."
        if origin.what == "input" and not origin.path:
            return f" It begins in {origin}: check the data."
        return f" It begins in {origin}."

    def _in_method(self) -> str:
        """The first strength, multiplier or penalty that is not finite, in a sentence; empty if all are."""
        assembly = self.objective.assembly
        if assembly.method is None:
            return ""
        rows = {"method": assembly.method.scalars(), **assembly.method.logs()}
        bad = [
            f"{k} of '{path}'" for path, row in rows.items() for k, v in row.items() if not math.isfinite(v)
        ]
        return f" It begins in the method {assembly.config.method}: {bad[0]} is not finite." if bad else ""

    def _step(self) -> str:
        part = 0 if self._last is None else self._last[1]
        return f"step {part // self.objective.loader.parts + 1} of epoch {self._epoch + 1}"


def finite_weights(model: nn.Module) -> bool:
    """Whether all parameters are finite; synchronises with the device once."""
    flags = [torch.isfinite(parameter.detach()).all() for parameter in model.parameters()]
    return bool(torch.stack(flags).all()) if flags else True


def _further(model: nn.Module) -> str:
    """How many more modules have weights that are not finite, in words."""
    bad = sum(
        not all(bool(torch.isfinite(p).all()) for p in m.parameters(recurse=False)) for m in model.modules()
    )
    return f" (and {bad - 1} modules more)" if bad > 1 else ""
