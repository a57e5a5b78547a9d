"""NaN, infinity and explosions while a run trains: noticed before they reach the weights, and traced to a module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from equirelax.errors import EquirelaxError, NonFiniteError
from equirelax_lab.training.assembly import Assembly
from equirelax_lab.training.non_finite import first_non_finite, largest_gain

EXPLODED = 1e6
"""A mean loss of an epoch above so many times the loss at the start ends a run as infinity does."""


class Divergence(Callback):
    """Ends a run whose numbers are no longer finite, or explode.

    A single process on the CPU looks at every step's loss before its backward pass and at its gradients before the
    optimiser's step, so that the weights are still those that were good before. Elsewhere that would wait for the
    device, or leave other processes waiting: there the means of an epoch are looked at, with the weights, at its end,
    before anything is saved.

    Args:
        assembly: The run's objects.

    Attributes:
        where: What was found when the run ended, in words; None as long as nothing was.
    """

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.where: str | None = None
        self._reference: float | None = None
        self._batch: tuple[Any, int] | None = None
        self._losses: list[Tensor] = []
        self._exploded = False

    def state_dict(self) -> dict[str, Any]:
        """The loss at the start."""
        return {"reference": self._reference}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self._reference = state_dict["reference"]

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch: it is what a failure is traced with."""
        self._batch = (batch, batch_idx)

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        """Look at the loss, or, where that would wait for the device, put it aside."""
        if not _every_step(trainer, module):
            self._losses.append(loss.detach())
            return
        if not math.isfinite(value := float(loss.detach())):
            raise NonFiniteError(f"The training loss is {value} in {self._step(trainer)}.")
        if self._reference is None:
            self._reference = value

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        """Look at the gradients."""
        if not _every_step(trainer, module):
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        # One sum over all of them; entries one by one only if it overflows.
        total = torch.nn.utils.get_total_norm(gradients, 1.0)
        if not math.isfinite(float(total)) and not all(bool(torch.isfinite(g).all()) for g in gradients):
            raise NonFiniteError(f"A gradient is not finite in {self._step(trainer)}, though the loss is.")

    def check_epoch(self, trainer: Trainer, means: Mapping[str, float]) -> None:
        """Look at an epoch's means and at the weights that it ended with.

        Raises:
            NonFiniteError: a mean or a weight is not finite, or the loss is `EXPLODED` times that at the start: the first
                step's, or, where steps are not looked at, the first epoch's mean, which all processes share.
        """
        losses, self._losses = self._losses, []
        epoch = f"epoch {trainer.current_epoch + 1}"
        for name, value in means.items():
            if not math.isfinite(value):
                bad = [k for k, each in enumerate(losses) if not math.isfinite(float(each))]
                first = f"step {bad[0] // trainer.accumulate_grad_batches + 1} of " if bad else ""
                raise NonFiniteError(f"The training {name.rpartition('/')[2]} is {value} in {first}{epoch}.")
        if not finite_weights(self.assembly.model):
            raise NonFiniteError(f"A weight is not finite at the end of {epoch}.")
        loss = means.get("train/loss")
        if loss is None:
            return
        if self._reference is None:
            self._reference = loss
        if self._reference > 0 and loss > EXPLODED * self._reference:
            self._exploded = True
            raise NonFiniteError(
                f"The training loss exploded: its mean is {loss:.3g} in {epoch}, and was {self._reference:.3g} at the start "
                f"(the limit is {EXPLODED:.0e} times that)."
            )

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Trace a failure, while the model is still on its device; other errors are none of its business."""
        numbers = isinstance(exception, NonFiniteError)
        if numbers or (isinstance(exception, RuntimeError) and not finite_weights(self.assembly.model)):
            self.where = self._traced(module)

    def _traced(self, module: LightningModule) -> str:
        """Where it began, as a sentence that follows the error's; empty where the last batch does not show it."""
        if self._batch is None:
            return ""
        batch, index = self._batch
        model = self.assembly.model

        def objective() -> Tensor:
            return cast(Tensor, module.training_step(batch, index))

        try:
            if self._exploded:
                gain = largest_gain(model, objective)
                return "" if gain is None else f" The layer that amplifies most: {gain}."
            found = first_non_finite(model, objective)
        except EquirelaxError:  # the model refuses this batch, and has said why
            return ""
        if found is None or found.what == "loss":
            found_in_method = self._of_method()
            return found_in_method or ("" if found is None else f" It begins in {found}.")
        if found.what == "weight":
            return f" It begins in {found}{_further(model)}."
        if found.what == "input" and not found.path:
            return f" It begins in {found}: look at the data."
        return f" It begins in {found}."

    def _of_method(self) -> str:
        """Strengths, multipliers and penalties that are not finite."""
        if self.assembly.method is None:
            return ""
        rows = {"method": self.assembly.method.scalars(), **self.assembly.method.logs()}
        bad = [
            f"{key} of '{path}'"
            for path, row in rows.items()
            for key, v in row.items()
            if not math.isfinite(v)
        ]
        return (
            f" It begins in the method {self.assembly.config.method}: {bad[0]} is not finite." if bad else ""
        )

    def _step(self, trainer: Trainer) -> str:
        part = 0 if self._batch is None else self._batch[1]
        return f"step {part // trainer.accumulate_grad_batches + 1} of epoch {trainer.current_epoch + 1}"


def finite_weights(model: nn.Module) -> bool:
    """Whether all parameters are finite; waits for the device once."""
    flags = [torch.isfinite(parameter.detach()).all() for parameter in model.parameters()]
    return bool(torch.stack(flags).all()) if flags else True


def _further(model: nn.Module) -> str:
    """How many other modules have weights that are not finite."""
    bad = sum(
        not all(bool(torch.isfinite(p).all()) for p in m.parameters(recurse=False)) for m in model.modules()
    )
    return f" (and {bad - 1} modules more)" if bad > 1 else ""


def _every_step(trainer: Trainer, module: LightningModule) -> bool:
    """Whether a look at a number is free: nothing to wait for, and nobody who waits."""
    return trainer.world_size == 1 and module.device.type == "cpu"
