"""What every method is: it makes the loss into what is minimised, drives strengths, and steps after the
optimizer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from equirelax.errors import MethodError
from equirelax.methods.unrelaxed import Unrelaxed
from equirelax.methods.watch import ParameterWatch, check_optimizers

if TYPE_CHECKING:
    from equirelax.penalties import Regularizer
    from equirelax.relaxation import Relaxation


class Method(ABC):
    """Base class of all methods. In a training loop:

        loss = criterion(model(x), y) + method.penalty()
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        method.step()

    A loop that serves every method, also those that weigh the loss itself, takes

        loss = method.objective(criterion(model(x), y), lambda: criterion(model(g x), g y))

    Args:
        relaxation: the relaxed model. Create the method after `relax` and before the optimizer, which must
            get gamma too.
        regularizer: optional regulariser of the residuals (Lie derivative and norm), added to `penalty()`.

    Attributes:
        name: as registered.
        description: in a line, as registered.
        deploys_relaxed: whether the model is used with its residuals (True) or projected (False).

    A residual that was switched off (by `Strict`) is switched on again, its weights trainable.

    Raises:
        MethodError: the model was projected.
    """

    name: ClassVar[str] = ""
    description: ClassVar[str] = ""
    deploys_relaxed: ClassVar[bool] = False

    def __init__(self, relaxation: Relaxation, regularizer: Regularizer | None = None) -> None:
        attached = {id(module) for module in relaxation.model.modules()}
        gone = [path for path, residual in relaxation.residuals.items() if id(residual) not in attached]
        if gone or not (relaxation.residuals or isinstance(relaxation, Unrelaxed)):
            raise MethodError(
                f"the model has no residual at {', '.join(gone[:5]) or 'all'} any more: it was projected. "
                f"Relax it again, and make the method from what relax() returns"
            )
        self.relaxation = relaxation
        self.regularizer = regularizer
        self._watch = ParameterWatch(relaxation)
        for residual in relaxation.residuals.values():
            if not residual.enabled:
                residual.enabled = True
                residual.map.requires_grad_(True)
            residual.keep_inputs = regularizer is not None

    @property
    def paths(self) -> list[str]:
        """Paths of the relaxed modules, in the model's order: the order of every per-residual vector here."""
        return list(self.relaxation.residuals)

    def objective(
        self, task: Tensor, moved: Callable[[], Tensor] | None = None, *, last: bool = True
    ) -> Tensor:
        """What to minimise, a scalar: here `task + penalty()`.

        A batch in micro-batches gives the same gradients as in one: `task` (and `moved`) then is each one's share of the
        batch's loss, so that the shares add up to it, and `last` tells the last one, whose penalty is that of all.

        Args:
            task: the task's loss on the batch, a scalar.
            moved: gives the task's loss on the batch with every sample, and its target, moved by a group
                element of its own, drawn anew. Called only by methods that need it (REMUL).
            last: whether an optimizer step follows.

        Raises:
            MethodError: the method needs `moved` and it is not given.
        """
        return task + self.penalty() if last else task

    def penalty(self) -> Tensor:
        """The term to add to the loss, a scalar. Call it after the forward pass(es).

        With gradient accumulation call it once, with the last micro-batch: it reads what all of them kept, and adds the
        regulariser's sums before it takes roots. It may also be called for every micro-batch: what it adds is as given,
        and counts as one step. Under `torch.no_grad` it leaves no trace and is the multipliers' or schedule's
        part alone.

        Raises:
            MethodError: `step()` is called before the optimizer's step.
        """
        if not torch.is_grad_enabled():
            return self._term()
        first = not self._watch.begun
        self._watch.begin()
        if first:
            self._observe()
        term = self._term()
        return term if self.regularizer is None else term + self._regularizer_weight() * self.regularizer()

    def step(self, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None) -> None:
        """Move what the method drives. Call it after `optimizer.step()`, once for every step.

        A step that the optimizer skipped (as under a `GradScaler`) moves no multiplier and no slack; a
        schedule goes on. Under a `GradScaler`, fused optimizers should be given here: they run even
        when they skip.

        Args:
            optimizer: if given (one, or all of several), checked at once to hold the residuals and gammas.

        Raises:
            MethodError: no `penalty()` before it.
            StaleOptimizerError: the optimizer does not train a residual or its gamma.
        """
        if optimizer is not None:
            several = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
            check_optimizers(self.relaxation, several)
        self._advance(moved=self._watch.end(optimizer))

    def logs(self) -> dict[str, dict[str, float]]:
        """Path -> {"gamma": value, ...}; waits for the device.

        Besides gamma what the method has: "multiplier", "effective_multiplier", "slack" (see the method),
        and "lie" and "norm", the regulariser's sums (before roots and weights) in its last call.
        """
        gammas = self._gammas().detach().tolist()
        rows = {path: {"gamma": gamma} for path, gamma in zip(self.paths, gammas, strict=True)}
        for key, vector in self._vectors().items():
            for path, value in zip(self.paths, vector.tolist(), strict=True):
                rows[path][key] = value
        if self.regularizer is not None:
            for path, terms in self.regularizer.terms.items():
                rows[path].update({key: float(value) for key, value in terms.items()})
        return rows

    def scalars(self) -> dict[str, float]:
        """Numbers of the method as a whole, for logs, such as REMUL's weights; waits for the device."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python, for `torch.save` and `torch.load(weights_only=True)`.

        Take it between steps. The strengths are in it as well as in the model's state, for constructing a
        method sets them anew. Settings (learning rates, number of steps) are not in it: the constructor's
        rule.
        """
        gammas = self.relaxation.gammas()
        state: dict[str, Any] = {"method": self.name, "paths": self.paths, "gammas": gammas, **self._state()}
        generator = None if self.regularizer is None else self.regularizer.generator
        if generator is not None:
            state["generator"] = generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; nothing is changed when it does not fit.

        Raises:
            MethodError: the state of another method or model, or a damaged one.
        """
        if state.get("method") != self.name:
            raise MethodError(
                f"the state is of method {state.get('method')!r}, this is {self.name!r}; "
                f"build the method it was saved from"
            )
        if state.get("paths") != self.paths:
            raise MethodError(_paths_differ(list(state.get("paths") or []), self.paths))
        missing = {"gammas", *self._state()} - state.keys()
        if missing:
            raise MethodError(
                f"the state of method {self.name!r} lacks {sorted(missing)}; is the file damaged?"
            )
        if tuple(state["gammas"].shape) != (len(self.paths),):
            raise MethodError(
                f"the state has strengths of shape {tuple(state['gammas'].shape)}; "
                f"expected {(len(self.paths),)}, one per residual"
            )
        self._load(state)
        for residual, gamma in zip(self.relaxation.residuals.values(), state["gammas"].tolist(), strict=True):
            residual.set_gamma(gamma)
        generator = None if self.regularizer is None else self.regularizer.generator
        if generator is not None and "generator" in state:
            generator.set_state(state["generator"].cpu())
        self._watch.forget()

    @abstractmethod
    def _term(self) -> Tensor:
        """The method's own part of the loss, a scalar."""

    @abstractmethod
    def _advance(self, moved: bool) -> None:
        """Take one step; `moved` is False when the optimizer skipped its own."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """The method's own state."""

    @abstractmethod
    def _load(self, state: dict[str, Any]) -> None:
        """Take the method's own state, after checking all of it."""

    def _observe(self) -> None:  # noqa: B027 - most methods have nothing to note
        """Note what the step must see of time t: called at the first `penalty()` after a step."""

    def _vectors(self) -> dict[str, Tensor]:
        """Per-residual vectors (n,) for the logs."""
        return {}

    def _regularizer_weight(self) -> float:
        """Factor on the regulariser."""
        return 1.0

    def _gammas(self) -> Tensor:
        """All strengths (n,), with gradients, in float32 or better, on the first residual's device."""
        gammas = [residual.gamma for residual in self.relaxation.residuals.values()]
        if not gammas:
            return self.relaxation.gammas()
        dtype = torch.promote_types(gammas[0].dtype, torch.float32)
        return torch.cat([g.to(device=gammas[0].device, dtype=dtype) for g in gammas])


def _paths_differ(saved: list[str], here: list[str]) -> str:
    only_saved = [p for p in saved if p not in here]
    only_here = [p for p in here if p not in saved]
    if not only_saved and not only_here:
        return "the state has the same residuals in another order; it is of another model"
    return (
        f"the state is of a model with other residuals: only in the state {only_saved[:5]}, only here "
        f"{only_here[:5]} ({len(saved)} and {len(here)} in all); "
        f"relax the model with the placement it was saved with"
    )
