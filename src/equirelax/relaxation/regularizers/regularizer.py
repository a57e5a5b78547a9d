"""The common part of all regularizers: the steps at which they are computed, the inputs that they read, and their state."""

from __future__ import annotations

import functools
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from equirelax.errors import PenaltyError
from equirelax.files import did_you_mean
from equirelax.ranks import ranks, summed
from equirelax.relaxation.columns import Columns
from equirelax.relaxation.relaxation import Relaxation
from equirelax.relaxation.residual import Residual
from equirelax.settings import COUNT, check

_NAMED: dict[str, type[Regularizer]] = {}
_R = TypeVar("_R", bound="type[Regularizer]")


class Regularizer(ABC):
    """A penalty on the residuals of a relaxed model, which methods add to the loss (`regularizer=`).

    It trains only the residuals: the inputs that it reads are detached. It is computed outside autocast, in float32 or
    better whatever the model's dtype.

    Subclasses compute `_value`. One that needs no inputs sets `reads_inputs` to False.

    Args:
        relaxation: The residuals to penalise.
        generator: Random number generator, if the penalty draws any numbers.
        every: k >= 1. The regularizer is computed at the first of every k steps and multiplied by k. It is 0 at the others,
            which keep no inputs. At fixed weights its mean over k steps is exact. For optimizers with moments, such as Adam,
            this is an approximation: they see k times the gradient once and none k - 1 times, which
            raises the second moment by k. Published settings use 1.

    Attributes:
        name: The name under which the class is registered.
        reads_inputs: Whether it reads the inputs of the residuals.
        terms: key -> name of a term -> its value when it was last computed, detached.
        steps: The number of steps taken, which are calls of `advance`; methods make one after every step.

    Raises:
        PenaltyError: `every` is below 1; or, at a call, no inputs were kept.
    """

    name: ClassVar[str] = ""
    reads_inputs: ClassVar[bool] = True

    def __init__(
        self, relaxation: Relaxation, *, generator: torch.Generator | None = None, every: int = 1
    ) -> None:
        check(every, COUNT, "every", PenaltyError)
        self.relaxation = relaxation
        self.generator = generator
        self.every, self.steps = every, 0
        self.terms: dict[str, dict[str, Tensor]] = {}
        self.keep()

    @abstractmethod
    def _value(self, kept: dict[str, list[Columns]]) -> Tensor:
        """The penalty, a 0-dimensional tensor.

        Args:
            kept: Key -> inputs of every residual that takes part; empty for a residual whose penalty needs none.
        """

    def capture_obstacle(self) -> str:
        """The reason why a CUDA graph cannot capture the penalty; empty if it can. See `methods.Method`."""
        return f"every is {self.every}: the penalty is computed in some steps only" if self.every > 1 else ""

    def stack_obstacle(self) -> str:
        """The reason why models cannot be trained in a stack with the penalty; empty if they can. See `methods.Method`."""
        return ""

    @property
    def due(self) -> bool:
        """Whether the penalty is computed in the next step."""
        return self.steps % self.every == 0

    def advance(self) -> None:
        """Advance to the next step, after the optimizer's."""
        self.steps += 1
        self.keep()

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and the state of the generator, if there is one."""
        generator = None if self.generator is None else self.generator.get_state()
        return {"steps": self.steps, "generator": generator}

    def check_state(self, state: object) -> None:
        """Raise a `PenaltyError` unless `state` is a `state_dict()` of a regularizer."""
        lacking = self.state_dict().keys() - (state.keys() if isinstance(state, dict) else set())
        if lacking:
            raise PenaltyError(
                f"the state of {type(self).__name__} lacks {sorted(lacking)}; is the file damaged?"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            PenaltyError: something is missing. Nothing is changed then.
        """
        self.check_state(state)
        self.steps = int(state["steps"])
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"].cpu())
        self.keep()

    def keep(self) -> None:
        """Make the residuals keep their inputs in exactly the steps that need them.

        This lasts until `stop`, or until this regularizer no longer exists. If several regularizers read the same residuals,
        the one that was made last, or has stepped last, determines the steps.
        """
        if not self.reads_inputs:
            return
        together = tuple(self.relaxation.residuals.values())
        for residual in together:
            readers = _readers_of(residual)
            if not readers or readers[-1] is not self:
                _remember(residual, [*(reader for reader in readers if reader is not self), self])
            residual.keep_inputs, residual.together = self.due, together

    def stop(self) -> None:
        """Stop reading the residuals' inputs. Residuals without another reader stop keeping inputs, and forget those kept."""
        for _, residual in self.relaxation:
            if any(reader is self for reader in _readers_of(residual)):
                _leave_to(residual, [reader for reader in _readers_of(residual) if reader is not self])

    def __call__(self) -> Tensor:
        """The penalty, a 0-dimensional tensor to add to the loss. It reads the kept inputs and forgets them."""
        if not self.due:
            self.forget()
            like = self.relaxation.gammas()
            return like.new_zeros((), dtype=torch.promote_types(like.dtype, torch.float32))
        kept = self._take()
        device = self.relaxation[next(iter(kept))].gamma.device
        with torch.autocast(device_type=device.type, enabled=False):
            return self.every * self._value(kept)

    def _take(self) -> dict[str, list[Columns]]:
        """The inputs of every residual that takes part."""
        if not self.reads_inputs:
            self.forget()
            return {key: [] for key, _ in self.relaxation}
        kept = {
            key: inputs
            for key, residual in self.relaxation
            if (inputs := residual.take_inputs()) or _needs_no_inputs(residual)
        }
        others = any(residual.map.reads_inputs for _, residual in self.relaxation)
        if not kept or (others and not any(kept.values())):
            raise PenaltyError(
                "no inputs were kept since the last penalty: call it once after a forward of the relaxed "
                "model in training mode (model.train()), with gradients, outside `relaxation.strict()`. "
                "Reentrant gradient checkpointing hides the forward: use "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False). Within a transform of torch.func the forward "
                "and method.penalty() belong into one `with method.mapped():`"
            )
        return kept

    def forget(self) -> None:
        """Forget inputs that were kept and will not be used."""
        for _, residual in self.relaxation:
            residual.forget_inputs()


_READERS: weakref.WeakKeyDictionary[Residual, list[weakref.ref[Regularizer]]] = weakref.WeakKeyDictionary()
"""The regularizers for which a residual keeps its inputs, in order. Without a reader, kept inputs would accumulate."""


def _readers_of(residual: Residual) -> list[Regularizer]:
    """The regularizers that still exist among a residual's readers."""
    found = (reference() for reference in _READERS.get(residual, ()))
    return [reader for reader in found if reader is not None]


def _remember(residual: Residual, readers: list[Regularizer]) -> None:
    _READERS[residual] = [weakref.ref(reader, _gone(residual)) for reader in readers]


def _gone(residual: Residual) -> Callable[[object], None]:
    """The callback for the end of a reader of a residual's inputs. It does not keep the residual alive."""
    return functools.partial(_unread, weakref.ref(residual))


def _unread(residual: weakref.ref[Residual], _: object) -> None:
    left = residual()
    if left is not None:
        _leave_to(left, _readers_of(left))


def _leave_to(residual: Residual, readers: list[Regularizer]) -> None:
    """Make a residual keep its inputs for the last of these readers; without readers it keeps none."""
    _remember(residual, readers)
    if readers:
        residual.keep_inputs = readers[-1].due
        residual.together = tuple(readers[-1].relaxation.residuals.values())
        return
    residual.keep_inputs, residual.together = False, ()
    residual.forget_inputs()


def _needs_no_inputs(residual: Residual) -> bool:
    """Whether the penalty depends only on a kernel, and the residual is not switched off."""
    return not residual.map.reads_inputs and residual.active


def register(name: str) -> Callable[[_R], _R]:
    """Class decorator that makes a regularizer known by name.

    Raises:
        PenaltyError: another class is registered under the name.
    """

    def add(cls: _R) -> _R:
        known = _NAMED.get(name, cls)
        # a class that is defined again, as when a notebook cell runs twice, replaces the earlier one
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise PenaltyError(f"two regularizers are registered as {name!r}: {known!r} and {cls!r}")
        _NAMED[name] = cls
        cls.name = name
        return cls

    return add


def names() -> tuple[str, ...]:
    """The names of the registered regularizers."""
    return tuple(sorted(_NAMED))


def get(name: str) -> type[Regularizer]:
    """The regularizer registered as `name`.

    Raises:
        PenaltyError: there is no such regularizer.
    """
    if name not in _NAMED:
        raise PenaltyError(
            f"no regularizer {name!r}.{did_you_mean(name, names())} Registered are {', '.join(names())}"
        )
    return _NAMED[name]


def safe_root(total: Tensor) -> Tensor:
    """sqrt(total), with gradient 0 where total is 0.

    The gradient of the plain root is infinite there, where zero-initialised residuals start. NaN stays NaN, so that the loss
    shows it.
    """
    positive = ~(total <= 0)
    return torch.where(
        positive, torch.where(positive, total, torch.ones_like(total)).sqrt(), torch.zeros_like(total)
    )


def over_ranks(local: Tensor) -> Tensor:
    """Sum over the ranks of the default process group. The gradient is multiplied by their number, which DDP averages away."""
    if ranks() == 1:
        return local
    return summed(local) + ranks() * (local - local.detach())
