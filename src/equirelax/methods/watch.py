"""Checks of how parameters move.

They find out whether a method is stepped at all. In loops that call `step()` themselves, they also find out whether
a step was skipped, whether the optimizer trains the residuals, and whether the order of calls is right.

PyTorch counts the in-place writes to every tensor (`Tensor._version`), so whether the optimizer has written to one is a
comparison of integers on the host, which neither copies the weights nor waits for the device. Writes of fused
optimizers, and those through `parameter.data`, are not counted. If the counters stand still, a
few entries of a few parameters are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from equirelax.errors import MethodError, StaleOptimizerError

if TYPE_CHECKING:
    from equirelax.relaxation import Relaxation

WITNESSES, WITNESS_ENTRIES = 8, 16
PATIENCE = 2  # consecutive steps after which an unmoved residual, or a wrong order, is an error


class Snapshot:
    """Write counters of parameters, and a few of their values, at one moment.

    Args:
        parameters: name -> parameter.
        suspects: names whose values are sampled in addition to the few that always are.
        sample: whether values are sampled at all.
    """

    def __init__(
        self, parameters: dict[str, nn.Parameter], suspects: Iterable[str] = (), sample: bool = True
    ) -> None:
        self.parameters = parameters
        self.versions = {name: p._version for name, p in parameters.items()}
        stride = -(-len(parameters) // WITNESSES) or 1
        names = {*list(parameters)[::stride], *(parameters.keys() & set(suspects))} if sample else set()
        self.witnesses = {name: _entries(parameters[name]).clone() for name in names}

    def written(self) -> set[str]:
        """Names of the parameters whose counters have changed since."""
        return {name for name, p in self.parameters.items() if p._version != self.versions[name]}

    def values_changed(self, names: Iterable[str] | None = None) -> bool:
        """Whether a sampled value (of these names, or of any) has changed. Waits for the device."""
        chosen = self.witnesses if names is None else self.witnesses.keys() & set(names)
        return any(not torch.equal(_entries(self.parameters[name]), self.witnesses[name]) for name in chosen)


def _entries(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().reshape(-1)[:WITNESS_ENTRIES]


class IdleWatch:
    """Counts, at a method's `penalty()`, how often the residuals' weights have changed since the method last stepped.

    Args:
        relaxation: the relaxed model.

    Attributes:
        stepped: Whether the method has stepped yet.
        changes: The count at the last `look`.
    """

    def __init__(self, relaxation: Relaxation) -> None:
        self.relaxation = relaxation
        self.stepped = False
        self.changes = 0
        self._last: Snapshot | None = None

    def look(self, ahead: Collection[int] = ()) -> int:
        """Compare with the last call, and return the count. Micro-batches without an optimizer step do not change it.

        Args:
            ahead: Ids of parameters whose changes do not count.
        """
        last = self._last
        if last is None:
            self._last = self._snapshot()
        else:
            names = {name for name, p in last.parameters.items() if id(p) not in ahead}
            if last.written() & names or last.values_changed(names):
                self.changes += 1
                self._last = self._snapshot()
        return self.changes

    def step(self) -> None:
        """Restart the count, because the method steps."""
        self.stepped = True
        self.changes = 0
        self._last = None

    def _snapshot(self) -> Snapshot:
        trainable = {
            f"{key}.{name}": p
            for key, residual in self.relaxation
            for name, p in residual.named_parameters()
            if p.requires_grad
        }
        # sample values for optimizers whose writes are not counted, but do not wait for the device once the method has stepped
        return Snapshot(trainable, sample=not self.stepped)


class ParameterWatch:
    """Detects what the optimizer did between a method's `penalty()` and its `step()`.

    Args:
        relaxation: the relaxed model.
    """

    def __init__(self, relaxation: Relaxation) -> None:
        self.relaxation = relaxation
        self._before: Snapshot | None = None
        self._after_skip: Snapshot | None = None
        self._late = 0
        self._by_value = False  # the optimizer's writes are not counted, so staleness cannot be detected
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
        """Record the state of every trainable parameter. A second call before `end` (micro-batches) does nothing.

        Raises:
            MethodError: parameters moved between `step()` and this call twice in a row, so the order of calls is wrong.
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

    def end(self) -> bool:
        """Whether the optimizer has moved anything since `begin`; False means that its step was skipped.

        Raises:
            MethodError: `begin` was not called.
            StaleOptimizerError: a residual's parameter had a gradient and did not move, in two calls in a row
                in which other parameters moved.
        """
        if self._before is None:
            raise MethodError(
                "method.step() without method.penalty() before it; every step needs one: "
                "loss = criterion(model(x), y) + method.penalty()"
            )
        before, self._before = self._before, None
        self._remove_hooks()
        graded, self._graded = self._graded, set()
        written = before.written()
        if not written and not self._by_value:
            self._by_value = before.values_changed()
        moved = before.values_changed() if self._by_value else bool(written)
        if not moved:
            self._after_skip = self._snapshot()
        elif not self._by_value:
            self._check_residuals(graded, written, before)
        return moved

    def forget(self) -> None:
        """Forget everything recorded, as after loading a state."""
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


def _stale(names: list[str], what: str) -> StaleOptimizerError:
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return StaleOptimizerError(
        f"these parameters of the residuals {what}: {shown}. Create the optimizer after relax(), and attach the method "
        f"to it: method.attach(optimizer) adds what is missing; freeze what is not meant to train with "
        f"requires_grad_(False)"
    )
