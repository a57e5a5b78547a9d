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

    `equirelax.relax` returns one. `equirelax.relaxation_of` makes one for a copy of a relaxed model, or for a module that
    contains relaxed ones. The residuals and their strengths live in the model; the handle itself holds only the history
    for `plot`.

    Args:
        model: a module with residuals inside, which may come from several calls of `relax`. Wrappers of `torch.compile`
            and of parallel training are unwrapped.

    Attributes:
        model: the unwrapped module.
        residuals: key of the residual (path of its module from `model`, and ":slot" where a module has several)
            -> `Residual`, in model order. A module with several names counts once.
        placements: path from `model` -> `Placement`, for every module that was relaxed.

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
        self._named: set[str] = set()  # residuals already named in the warning that nothing calls them
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
        """Return every residual with its key, its module and the relaxed part of the model that it belongs to."""
        return tuple(self._entries.values())

    def summary(self) -> Summary:
        """List every module of the model (relaxed, skipped or unknown, and why) and the memory that training takes."""
        memory = memory_of(self.strict_parameters().values(), self.residuals.values())
        return Summary(rows(self.model, self.entries()), memory)

    @contextlib.contextmanager
    def strict(self) -> Iterator[nn.Module]:
        """Run the model without its residuals inside a `with` block.

        Within the block the residuals' hooks are off the modules, so the outputs and the speed are exactly those of the
        author's model, as after `project(model, mode="drop")`. Blocks may be nested and may overlap in several
        threads. A thread that trains the model meanwhile trains it without residuals, so give it a copy. A copy
        that is made inside the block stays strict until `relaxation_of(copy).enable()`.
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
        """Switch every residual on or off. Switching on also ends every `strict()` block."""
        for residual in self.residuals.values():
            residual.enabled = on
            residual.suspended = 0 if on else residual.suspended
        if on:
            unpark(self.model.modules(), all_blocks=True)

    def prune(self, threshold: float = 0.0) -> ProjectionReport:
        """Remove the residuals whose strength is at most `threshold` in absolute value, and keep the others.

        Use it for a network that is deployed relaxed, for example to remove the residuals that ResilientACE has driven
        to 0. A residual of a stream stays as long as a later one of the same stream stays, because the later one builds
        on it. A method that was made earlier still refers to the removed residuals: to continue training, make a new one.

        Args:
            threshold: largest |gamma| that is removed, at least 0.

        Returns:
            A report of the removed residuals.

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
        """Record an optimizer step. Methods call this.

        Adds the strengths to the history, and warns once about every residual that no call has reached since the last
        step.
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
                f"last step, so nothing trains it: the network does not call the module, or computes with its weights "
                f"without calling it (a fused path, module.forward(...)). Leave it out with exclude=, or call the module",
                EquirelaxWarning,
                stacklevel=3,
            )

    def record(self, error: Audited | float) -> None:
        """Record an equivariance error for `plot` at the current optimizer step.

        Args:
            error: The report that `equirelax.audit` returns for the model, or a relative error.
        """
        if isinstance(error, (int, float)):
            self.history.error(float(error), None)
        else:
            self.history.error(error.before.relative, None if error.after is None else error.after.relative)

    def plot(self) -> Figure:
        """Plot the strengths over the optimizer steps of the methods made on this handle, and the errors given to `record`.

            for step, (x, y) in enumerate(loader):
                ...
                if step % 100 == 0:
                    relaxation.record(er.audit(model, sample, in_rep, out_rep))
            relaxation.plot().savefig("training.png")

        At most 1000 steps are kept, evenly spaced. Needs matplotlib. A notebook shows the returned figure.

        Raises:
            RelaxationStateError: nothing was recorded, or matplotlib is missing.
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
        """Key -> Lipschitz constant of the residual's map, without its strength, where one is known.

        It is the largest singular value of a linear map, and an upper bound for other maps.
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
        """The state dict that the author's unrelaxed model would have, with its keys only. Tensors are not copied."""
        return {k: v for k, v in self.model.state_dict().items() if not of_residual(k)}

    def load_strict(self, state: Mapping[str, Any]) -> None:
        """Load a state dict of the author's unrelaxed model, such as a pretrained one. The residuals stay as they are.

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
    """Keys of buffers that layers compute from their parameters and hold in one training mode only."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for family in families_of(module)
        for name in family.derived(module)
    }


def refresh(model: nn.Module) -> None:
    """Make every layer recompute the buffers that it derives from its parameters."""
    for module in model.modules():
        for family in families_of(module):
            family.refresh(module)
