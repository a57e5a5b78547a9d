"""Watching parameters move: was a step skipped, does the optimizer train the residuals, is the order right.

PyTorch counts the in-place writes to every tensor (`Tensor._version`), so that "has the optimizer written to
it?" is a comparison of integers on the host: no copy of the weights, no wait for the device. Fused
optimizers, and those that write through `parameter.data`, are not counted; where the counters stand still, a
few entries of a few parameters are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from equirelax.errors import MethodError, StaleOptimizerError

if TYPE_CHECKING:
    from equirelax.relaxation import Relaxation

WITNESSES, WITNESS_ENTRIES = 8, 16
PATIENCE = 2  # steps in a row before a residual that does not move, or a wrong order, is an error


class Snapshot:
    """Write counters of parameters, and a few of their values, at one moment.

    Args:
        parameters: name -> parameter.
        suspects: names whose values are sampled besides the few that always are.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], suspects: Iterable[str] = ()) -> None:
        self.parameters = parameters
        self.versions = {name: p._version for name, p in parameters.items()}
        stride = -(-len(parameters) // WITNESSES) or 1
        names = {*list(parameters)[::stride], *(parameters.keys() & set(suspects))}
        self.witnesses = {name: _entries(parameters[name]).clone() for name in names}

    def written(self) -> set[str]:
        """Names of the parameters whose counters have moved since."""
        return {name for name, p in self.parameters.items() if p._version != self.versions[name]}

    def values_changed(self, names: Iterable[str] | None = None) -> bool:
        """Whether a sampled value (of these names, or of any) has changed. Waits for the device."""
        chosen = self.witnesses if names is None else self.witnesses.keys() & set(names)
        return any(not torch.equal(_entries(self.parameters[name]), self.witnesses[name]) for name in chosen)


def _entries(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().reshape(-1)[:WITNESS_ENTRIES]


class ParameterWatch:
    """Tells, between a method's `penalty()` and its `step()`, what the optimizer did.

    Args:
        relaxation: the relaxed model.
    """

    def __init__(self, relaxation: Relaxation) -> None:
        self.relaxation = relaxation
        self._before: Snapshot | None = None
        self._after_skip: Snapshot | None = None
        self._late = 0
        self._by_value = (
            False  # the optimizer's writes are not counted; staleness is then left to step(optimizer)
        )
        self._settled = False  # every residual has been seen to move
        self._confirmed: set[str] = set()
        self._graded: set[str] = set()
        self._unmoved: dict[str, int] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def begun(self) -> bool:
        """Whether `begin` has been called since the last `end`."""
        return self._before is not None

    def begin(self) -> None:
        """Note where every trainable parameter stands; again before `end` (micro-batches) it does nothing.

        Raises:
            MethodError: parameters moved between `step()` and this call, twice in a row: the order is wrong.
        """
        if self._before is not None:
            return
        self._check_order()
        self._before = self._snapshot()
        if self._settled or self._by_value:
            return
        watched = {name: p for name, p in self._residual_parameters().items() if name not in self._confirmed}
        self._settled = not watched
        for name, parameter in watched.items():
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._note_gradient(name)))

    def end(self, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None) -> bool:
        """Whether the optimizer moved anything since `begin`; False means that its step was skipped.

        Raises:
            MethodError: `begin` was not called.
            StaleOptimizerError: a residual's parameter had a gradient and did not move, in two calls in a row
                in which other parameters moved.
        """
        if self._before is None:
            raise MethodError(
                "method.step() without method.penalty() before it; every step needs one: "
                "loss = criterion(...) + method.penalty()"
            )
        before, self._before = self._before, None
        self._remove_hooks()
        graded, self._graded = self._graded, set()
        written = before.written()
        if not written and not self._by_value:
            self._by_value = before.values_changed()
        if self._by_value or _writes_when_skipping(optimizer):
            moved = before.values_changed()
        else:
            moved = bool(written)
        if not moved:
            self._after_skip = self._snapshot()
        elif not self._by_value:
            self._check_residuals(graded, written, before)
        return moved

    def forget(self) -> None:
        """Start anew, as after a state was loaded."""
        self._remove_hooks()
        self._before = self._after_skip = None
        self._late = 0
        self._graded, self._unmoved = set(), {}

    def _snapshot(self) -> Snapshot:
        trainable = {name: p for name, p in self.relaxation.model.named_parameters() if p.requires_grad}
        return Snapshot(trainable, suspects=self._unmoved)

    def _residual_parameters(self) -> dict[str, nn.Parameter]:
        """The residuals' parameters by their names in the model."""
        owned = {id(p) for residual in self.relaxation.residuals.values() for p in residual.parameters()}
        return {name: p for name, p in self.relaxation.model.named_parameters() if id(p) in owned}

    def _note_gradient(self, name: str) -> Callable[[Tensor], None]:
        def note(_: Tensor) -> None:
            self._graded.add(name)

        return note

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _check_order(self) -> None:
        skipped, self._after_skip = self._after_skip, None
        late = skipped is not None and (
            skipped.values_changed() if self._by_value else bool(skipped.written())
        )
        self._late = self._late + 1 if late else 0
        if self._late >= PATIENCE:
            raise MethodError(
                "method.step() is called before optimizer.step(): the parameters moved after it, twice in "
                "a row. The order is: loss with method.penalty(), backward, optimizer.step(), method.step()"
            )

    def _check_residuals(self, graded: set[str], written: set[str], before: Snapshot) -> None:
        self._confirmed |= written
        self._unmoved = {name: self._unmoved.get(name, 0) + 1 for name in sorted(graded - written)}
        stale = [name for name, count in self._unmoved.items() if count >= PATIENCE]
        if stale and before.values_changed(stale):
            self._by_value = True  # one of several optimizers is not counted
        elif stale:
            raise _stale(stale, f"have a gradient but did not move in {PATIENCE} steps in which others did")


def check_optimizers(relaxation: Relaxation, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Check that every trainable parameter of the residuals, gamma included, is in one of the optimizers.

    Raises:
        StaleOptimizerError: naming those that are in none.
    """
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    missing = [
        f"{path}: {name}"
        for path, residual in relaxation.residuals.items()
        for name, p in residual.named_parameters()
        if p.requires_grad and id(p) not in held
    ]
    if missing:
        raise _stale(missing, "are not in the optimizer's parameter groups")


def _stale(names: list[str], what: str) -> StaleOptimizerError:
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return StaleOptimizerError(
        f"these parameters of the residuals {what}: {shown}. Create the optimizer after relax() and "
        f"after the method (relax -> method -> optimizer); "
        f"freeze what is not meant to train with requires_grad_(False)"
    )


def _writes_when_skipping(optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None) -> bool:
    """Whether it is fused: its kernel gets the GradScaler's found_inf, runs, and changes nothing."""
    several = optimizer if isinstance(optimizer, Sequence) else [optimizer]
    return any(getattr(one, "_step_supports_amp_scaling", False) for one in several)
