"""One call of Lightning's trainer, such as `fit`: a callback's temporary changes to the module and queries of the trainer."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from equirelax.errors import MethodError

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer


class TrainerRun:
    """One call of the trainer: its module, whose functions are wrapped meanwhile, and the state of the call.

    Attributes:
        is_set_up: Whether the module's `setup` has finished.
        fresh: Whether the network was relaxed in this call.
        was_relaxed: Whether an earlier call left it relaxed, with its residuals outside the module's state.
        trained: Whether any batch was used for training.
        attached: Whether the method is attached to the optimizers.
        is_over: Whether `fit` has finished.
        averaged: Whether the weights of the loaded checkpoint are averages.
        has_loss: Whether a batch since the last step of the optimizer had a loss.
        sample: The network's first input in training, if `note_input` was called.
        random: The random state with which to continue.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, fitting: bool) -> None:
        self.trainer, self.module, self.fitting = trainer, module, fitting
        self.is_set_up = self.fresh = self.was_relaxed = self.trained = self.has_loss = False
        self.attached = self.is_over = self.averaged = False
        self.sample: Any = None
        self.random: dict[str, Any] | None = None
        self._wrapped: dict[str, Any] = {}
        self._hooks: list[RemovableHandle] = []

    def wrap(self, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace a function of the module until `end`, at most once."""
        if name not in self._wrapped:
            original = getattr(self.module, name)
            self._wrapped[name] = self.module.__dict__.get(name)
            setattr(self.module, name, functools.wraps(original)(around(original)))

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Disable the module's `log`, and with it `log_dict`, in a block."""
        before = self.module.__dict__.get("log")
        self.module.log = lambda *_, **__: None  # type: ignore[method-assign]
        try:
            yield
        finally:
            if before is None:
                del self.module.log
            else:
                self.module.log = before  # type: ignore[method-assign]

    def note_input(self, network: nn.Module) -> None:
        """Record the first input that the network gets in training."""

        def note(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.sample is None and network.training:
                self.sample = _as_sample(network, args, kwargs)

        self._hooks.append(network.register_forward_pre_hook(note, with_kwargs=True))

    def end(self) -> None:
        """Restore the module's functions."""
        for name, before in self._wrapped.items():
            if before is None:
                delattr(self.module, name)
            else:
                setattr(self.module, name, before)
        for hook in self._hooks:
            hook.remove()
        self._wrapped, self._hooks = {}, []

    def owners(self, callback: Callback) -> dict[str, object]:
        """Name -> object for the objects that may hold averages: the module and the other callbacks."""
        found: dict[str, object] = {type(self.module).__name__: self.module}
        for other in callbacks_of(self.trainer):
            if other is not callback:
                name = type(other).__name__
                found[name if name not in found else f"{name} {len(found)}"] = other
        return found

    def step_follows(self) -> bool:
        """Whether a step of the optimizer follows the current batch."""
        trainer = self.trainer
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        last = trainer.is_last_batch or ready >= trainer.num_training_batches
        return last or ready % trainer.accumulate_grad_batches == 0

    def steps(self, start: int) -> int:
        """The number of optimizer steps from `start` to the end of training."""
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total) or total < 0:
            raise MethodError(
                "the trainer does not know how many steps the training has (no max_epochs and no max_steps, or data without a "
                "length): give Trainer(max_steps=...), or total_steps to the callback"
            )
        return max(int(total) - start, 1)

    def steps_per_epoch(self) -> int:
        """The number of optimizer steps per epoch."""
        if self.trainer.train_dataloader is None:
            self.trainer.fit_loop.setup_data()
        batches = self.trainer.num_training_batches
        if not math.isfinite(batches):
            raise MethodError("the training data have no length: give steps_per_epoch as a number")
        return max(math.ceil(batches / self.trainer.accumulate_grad_batches), 1)

    def random_state(self) -> dict[str, Any] | None:
        """Torch's random state; None with several processes, since only one of them writes the checkpoint."""
        if self.trainer.world_size > 1:
            return None
        device = self.module.device
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def restore_random(self) -> None:
        """Set torch's random state to that of the checkpoint, if there is one."""
        if self.random is None:
            return
        torch.set_rng_state(self.random["cpu"].cpu())
        if self.random["cuda"] is not None and self.module.device.type == "cuda":
            torch.cuda.set_rng_state(self.random["cuda"].cpu(), self.module.device)
        self.random = None
        loop = self.trainer.fit_loop
        if (
            loop.is_resuming and loop._data_fetcher is not None
        ):  # its iteration began earlier, with other random numbers
            iter(loop._data_fetcher)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The trainer's callbacks, including those that the module added."""
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def _as_sample(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A copy of a call's arguments in the form that `audit` takes. It is a copy because the network may write into them."""
    if args and kwargs:
        bound = inspect.signature(network.forward).bind(*args, **kwargs)
        args, kwargs = (), dict(bound.arguments)
    return tree_map(_copied, kwargs or (args if len(args) > 1 else args[0]))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.clone() if hasattr(value, "clone") else value
