"""The handle over all residuals of a model."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from equirelax.errors import CheckpointError, EquirelaxWarning, PlacementError, RelaxationStateError
from equirelax.files import did_you_mean
from equirelax.relaxation.entries import Entry, detach, find, of_residual, own_modules, roots
from equirelax.relaxation.history import History, figure
from equirelax.relaxation.hooks import guard_hooks, park, unpark
from equirelax.relaxation.layers.family import families_of
from equirelax.relaxation.placements.placement import (
    Placement,
)
from equirelax.relaxation.projected import ProjectionReport, record
from equirelax.relaxation.residual import Residual, drivers_of
from equirelax.relaxation.summary import Summary, memory_of, rows
from equirelax.relaxation.surroundings import is_compiled
from equirelax.relaxation.terms.precision import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Measured(Protocol):
    """An equivariance error."""

    @property
    def relative(self) -> float:
        """The error relative to the output."""


class Audited(Protocol):
    """The part of an audit's report that `Relaxation.record` needs."""

    @property
    def before(self) -> Measured:
        """The error of the model as it is."""

    @property
    def after(self) -> Measured | None:
        """The error without residuals."""


class Relaxation:
    """All residuals inside a model: iterate, summarise, switch off, remove.

    Made by `equirelax.relax` or, for a copy of a relaxed model or a module around relaxed ones, by
    `equirelax.relaxation_of`. The residuals and their strengths live in the model; the handle holds the history for
    `plot` alone.

    Args:
        model: a module with residuals inside, whoever relaxed which part of it; wrappers of `torch.compile` and of
            parallel training are looked through.

    Attributes:
        model: the module through which one looks.
        residuals: key of the residual (path of its module from `model`, and ":slot" where a module has several)
            -> `Residual`, in model order. A module with several names counts once.
        placements: path from `model` -> `Placement` of every module that was relaxed.

    Raises:
        RelaxationStateError: the model is not relaxed, or a residual inside belongs to a module around it.
    """

    may_be_empty: ClassVar[bool] = False
    """Whether a handle over no residuals makes sense."""

    def __init__(self, model: nn.Module) -> None:
        guard_hooks()
        self.model = unwrapped(model)
        self._entries: dict[str, Entry] = {}
        self.residuals: dict[str, Residual] = {}
        self.placements: dict[str, Placement] = {}
        self.history = History()
        self._named: set[str] = set()  # residuals of which it was said that nothing calls them
        self._look()
        if not self.residuals and not self.may_be_empty:
            raise RelaxationStateError(
                f"{type(self.model).__name__} is not relaxed: call equirelax.relax(model) first"
            )

    def _look(self) -> None:
        self._entries = {one.key: one for one in find(self.model)}
        self.residuals = {key: one.residual for key, one in self._entries.items()}
        self.placements = roots(self.model)

    def __iter__(self) -> Iterator[tuple[str, Residual]]:
        return iter(self.residuals.items())

    def __len__(self) -> int:
        return len(self.residuals)

    def __getitem__(self, key: str) -> Residual:
        return self._one(key).residual

    def _one(self, key: str) -> Entry:
        if key not in self._entries:
            raise PlacementError(
                f"no residual {key!r}.{did_you_mean(key, list(self.residuals))} There are "
                f"{', '.join(self.residuals)}"
            )
        return self._entries[key]

    def __repr__(self) -> str:
        names = [key or "(model)" for key in self.residuals]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return f"Relaxation({len(self)} residuals on {type(self.model).__name__}: {shown})"

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def path(self, key: str) -> str:
        """The path from `model` of the module that a residual relaxes ("" is the model itself)."""
        return self._one(key).path

    def module(self, key: str) -> nn.Module:
        """The module that a residual relaxes."""
        return self._one(key).module

    def entries(self) -> tuple[Entry, ...]:
        """Every residual with its key, module and the relaxed part of the model that it belongs to."""
        return tuple(self._entries.values())

    def summary(self) -> Summary:
        """Every module of the model: relaxed, skipped or unknown, and why; and the memory that training takes."""
        memory = memory_of(self.strict_parameters().values(), self.residuals.values())
        return Summary(rows(self.model, self.entries()), memory)

    @contextlib.contextmanager
    def strict(self) -> Iterator[nn.Module]:
        """Within it the model is the author's own, to the bit and at its speed: the residuals' hooks are off its modules.

        It computes what it would after `project(model, mode="drop")`. Blocks may be nested and may overlap in several
        threads; whoever trains the model meanwhile trains it without residuals, so give another thread a copy. A copy
        that is made inside the block stays strict, until `relaxation_of(copy).enable()`.
        """
        held = self._suspend()
        try:
            yield self.model
        finally:
            unpark(held)
            for residual in self.residuals.values():
                residual.suspended = max(residual.suspended - 1, 0)

    def _suspend(self) -> list[nn.Module]:
        for residual in self.residuals.values():
            residual.suspended += 1
        return park(self.model.modules())

    def enable(self, on: bool = True) -> None:
        """Switch every residual on or off; on also ends every `strict()` block."""
        for residual in self.residuals.values():
            residual.enabled = on
            residual.suspended = 0 if on else residual.suspended
        if on:
            unpark(self.model.modules(), all_blocks=True)

    def prune(self, threshold: float = 0.0) -> ProjectionReport:
        """Remove the residuals whose strength is at most `threshold` in absolute value, such as those that ResilientACE
        has driven to 0, and leave the others: for a network that is deployed relaxed.

        Residuals of a stream stay as long as a later one of the stream does, for which they are a step. A method that was
        made before refers to the residuals that are gone: to train on, make a new one.

        Args:
            threshold: largest |gamma| that is removed, at least 0.

        Returns:
            What was removed.

        Raises:
            PlacementError: the threshold is below 0 or not a number.
        """
        if not threshold >= 0:
            raise PlacementError(f"prune: threshold is {threshold}; expected a number of at least 0")
        gone: dict[str, Entry] = {}
        going: set[Residual] = set()
        for key, one in reversed(self._entries.items()):
            residual = one.residual
            small = abs(float(residual.gamma.detach())) <= threshold
            if small and all(later in going for later in residual.dependents):
                gone[key] = one
                going.add(residual)
        report = ProjectionReport(
            "drop", tuple(record(key, one.residual) for key, one in self._entries.items() if key in gone)
        )
        if gone:
            for driver in drivers_of(self.residuals.values()):
                driver.detach()
            self.history.keep([i for i, key in enumerate(self._entries) if key not in gone])
            detach(self.model, gone.values())
            self._look()
        return report

    def after_step(self) -> None:
        """Note that the optimizer took a step: the strengths go to the history, and a residual that no call has reached
        since the last step is named in a warning, once. Methods call it.
        """
        self.history.step(self.gammas())
        idle = [key for key, residual in self if residual.enabled and not residual.called]
        for residual in self.residuals.values():
            residual.called = False
        new = [key for key in idle if key not in self._named]
        self._named.update(new)
        if new:
            shown = ", ".join(f"{key or 'the model'} ({type(self.module(key)).__name__})" for key in new[:5])
            warnings.warn(
                f"no call has reached the residual of {shown}{f' and {len(new) - 5} more' if len(new) > 5 else ''} in the "
                f"last step, so that nothing trains it: the network does not call the module, or computes with its weights "
                f"without calling it (a fused path, module.forward(...)). Leave it out with exclude=, or call the module",
                EquirelaxWarning,
                stacklevel=3,
            )

    def record(self, error: Audited | float) -> None:
        """Note an equivariance error for `plot`, at the present optimizer step.

        Args:
            error: The report of `equirelax.audit` of the model, or a relative error.
        """
        if isinstance(error, (int, float)):
            self.history.error(float(error), None)
        else:
            self.history.error(error.before.relative, None if error.after is None else error.after.relative)

    def plot(self) -> Figure:
        """Every strength over the optimizer steps of the methods made on this handle, and the errors given to `record`.

            for step, (x, y) in enumerate(loader):
                ...
                if step % 100 == 0:
                    relaxation.record(er.audit(model, sample, in_rep, out_rep))
            relaxation.plot().savefig("training.png")

        At most 1000 steps are kept, evenly spaced. Needs matplotlib; a notebook shows what is returned.

        Raises:
            RelaxationStateError: nothing was noted, or matplotlib is missing.
        """
        return figure(self.history, list(self.residuals))

    def set_gamma(self, value: float) -> None:
        """Set every strength."""
        for residual in self.residuals.values():
            residual.set_gamma(value)

    def gammas(self) -> Tensor:
        """The strengths, detached, of shape (residuals,), on the first residual's device."""
        gammas = [whole(residual.gamma.detach()) for residual in self.residuals.values()]
        return torch.cat([gamma.to(gammas[0].device) for gamma in gammas])

    def norms(self) -> dict[str, float]:
        """Key -> Lipschitz constant of the residual's map without its strength, of those of which one is known: the largest
        singular value of a linear map, and an upper bound of others.
        """
        slopes = {key: residual.slope().constant for key, residual in self}
        return {key: value for key, value in slopes.items() if value is not None}

    def residual_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the residuals' maps, without the strengths: `"<key>.<name>"` -> parameter."""
        return {f"{key}.{name}": p for key, residual in self for name, p in residual.map.named_parameters()}

    def gamma_parameters(self) -> dict[str, nn.Parameter]:
        """The strengths that are learnt: key -> parameter."""
        return {key: residual.gamma for key, residual in self if residual.is_learnt}

    def strict_parameters(self) -> dict[str, nn.Parameter]:
        """The author's own parameters: path -> parameter, each once."""
        seen: set[int] = set()
        result: dict[str, nn.Parameter] = {}
        for path, module in own_modules(self.model):
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    result[f"{path}.{name}" if path else name] = parameter
        return result

    def strict_state_dict(self) -> dict[str, Any]:
        """The state dict that the author's unrelaxed model would have:
        its keys, no others. Tensors are not copied.
        """
        return {k: v for k, v in self.model.state_dict().items() if not of_residual(k)}

    def load_strict(self, state: Mapping[str, Any]) -> None:
        """Load a state dict of the author's unrelaxed model,
        such as a pretrained one; residuals stay as they are.

        Raises:
            CheckpointError: for missing or unexpected keys.
        """
        derived = derived_keys(self.model)
        own = {key: value for key, value in self.strict_state_dict().items() if key not in derived}
        state = {key: value for key, value in state.items() if key not in derived}
        missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
        if missing or unexpected:
            raise CheckpointError(
                f"the state dict does not fit {type(self.model).__name__}: missing {missing[:5]}, unexpected "
                f"{unexpected[:5]}{did_you_mean(unexpected[0], list(own)) if unexpected else ''}"
            )
        try:
            self.model.load_state_dict(dict(state), strict=False)
        except RuntimeError as error:
            raise CheckpointError(
                f"the state dict does not fit {type(self.model).__name__}: {error}"
            ) from error
        refresh(self.model)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of `torch.compile` and of parallel training."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif is_compiled(model):
            inside: Any = model
            model = inside._orig_mod
        else:
            return model


def derived_keys(model: nn.Module) -> set[str]:
    """Keys of buffers that layers compute from their parameters, and that come and go with the training mode."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for family in families_of(module)
        for name in family.derived(module)
    }


def refresh(model: nn.Module) -> None:
    """Have every layer compute such buffers again."""
    for module in model.modules():
        for family in families_of(module):
            family.refresh(module)
