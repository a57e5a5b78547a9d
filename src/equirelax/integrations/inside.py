"""A relaxed network inside a module that a trainer saves, loads, averages and evaluates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from equirelax.errors import CheckpointError, PlacementError
from equirelax.files import did_you_mean
from equirelax.integrations.averages import (
    StrictAverage,
    copies_of,
    held_modules,
    refuse_unknown,
    relax_alike,
)
from equirelax.relaxation import ProjectionReport, Relaxation, project
from equirelax.relaxation.entries import of_residual
from equirelax.relaxation.residual import Residual


class RelaxedInside:
    """Keeps the residuals out of the module's state dict, and keeps averages of its weights paired with the network.

    Args:
        relaxation: The relaxed network.
        module: The module around it, whose state dict has only the author's keys until `release`.
        owners: A function that returns name -> object for the objects that may hold averages: the module and callbacks of its
            trainer.
        others: Paths, in an owner, of separate networks that are not averages.

    Attributes:
        relaxation: The relaxed network.

    Raises:
        RelaxationStateError: An average cannot be paired with the network.
        PlacementError: One of `others` does not exist.
    """

    def __init__(
        self,
        relaxation: Relaxation,
        module: nn.Module,
        owners: Callable[[], Mapping[str, object]],
        others: Collection[str] = (),
    ) -> None:
        self.relaxation = relaxation
        self._module, self._owners, self._others = module, owners, others
        self._copies: dict[str, Relaxation] = {}
        self._averages: dict[str, StrictAverage] = {}
        self._hooks: list[RemovableHandle] = []
        self._relaxed: list[nn.Module] = []  # copies that were not relaxed before
        self._strict = contextlib.ExitStack()
        copies = (copy.network for copy in copies_of(relaxation.model, owners(), module))
        averages = (one for _, one in _all_modules(owners()) if StrictAverage.fits(one))
        refuse_unknown(relaxation.model, owners(), [*copies, *averages])
        _check_names(self._others, owners())
        try:
            self.pair()
        except BaseException:
            self.undo()
            raise

    def pair(self) -> None:
        """Relax copies of the network, and adapt averages. Call it again if new ones may have been made since."""
        network, owners = self.relaxation.model, self._owners()
        self._copies = {}
        for copy in copies_of(network, owners, self._module):
            if copy.name.partition(".")[2] in self._others:
                continue
            if not _residuals(copy.network):
                self._relaxed.append(copy.network)
            self._copies[copy.name] = relax_alike(copy, self.relaxation)
        for name, inside in _all_modules(owners):
            if StrictAverage.fits(inside) and not any(one.is_of(inside) for one in self._averages.values()):
                self._averages[name] = StrictAverage(inside, self.relaxation)
        around = [inside for _, inside in _all_modules(owners) if type(inside) is type(self._module)]
        for one in (self._module, *around):
            if not _Hook.at_work(one):
                residuals = _residuals(one)
                self._hooks.append(one.register_state_dict_post_hook(_LeavesResidualsOut(residuals)))
                self._hooks.append(one.register_load_state_dict_post_hook(_MissesNoResiduals(residuals)))

    def begin_strict(self) -> None:
        """Show the network and its copies without residuals, until `end_strict`."""
        self.pair()
        for handle in (self.relaxation, *self._copies.values()):
            self._strict.enter_context(handle.strict())

    def end_strict(self) -> None:
        """Show them with residuals again. Without `begin_strict` it does nothing."""
        self._strict.close()

    def project(self) -> ProjectionReport:
        """Project the network and its copies, and leave the module as its author wrote it."""
        self.pair()
        copies = list(self._copies.values())
        self.release()
        report = project(self.relaxation.model)
        for copy in copies:
            project(copy.model)
        return report

    def release(self) -> None:
        """Undo the changes to the module and to averages. The network and its copies stay relaxed."""
        self.end_strict()
        for hook in self._hooks:
            hook.remove()
        for average in self._averages.values():
            average.remove()
        self._hooks, self._averages, self._copies = [], {}, {}

    def undo(self) -> None:
        """Restore the module and the copies. The network stays relaxed."""
        self.release()
        for copy in self._relaxed:
            if _residuals(copy):
                project(copy)

    def state(self) -> dict[str, Any]:
        """The residuals, with strengths, of the network, its copies and other averages, as tensors and plain data."""
        self.pair()
        return {
            "residuals": _state_of(self.relaxation),
            "copies": {name: _state_of(copy) for name, copy in self._copies.items()},
            "averages": {name: average.beside.state_dict() for name, average in self._averages.items()},
        }

    def load(self, state: Mapping[str, Any], taken: str = "") -> None:
        """Fill the residuals from `state()`.

        Args:
            state: The result of `state()`.
            taken: The end of the name of a copy whose weights the network got from the checkpoint. The network then also gets
                that copy's residuals, unless the copy is present. "" if the weights are the network's own.

        Raises:
            CheckpointError: The state is of a network with other residuals, or lacks an average that is present now.
        """
        self.pair()
        for name in (*self._copies, *self._averages):
            if name not in state["copies"] and name not in state["averages"]:
                raise CheckpointError(
                    f"the checkpoint has no residuals for the average {name}: it was made by a training without that average"
                )
        averages = [name for name in state["copies"] if taken and name.endswith(taken)]
        apart = next((name for name in averages if name not in self._copies), None)
        own = state["residuals"] if apart is None else state["copies"][apart]
        fill(self.relaxation, own, "the network")
        for name, copy in self._copies.items():
            fill(copy, state["copies"][name], name)
        for name, average in self._averages.items():
            average.beside.load_state_dict(state["averages"][name])


def _check_names(others: Collection[str], owners: Mapping[str, object]) -> None:
    known = [name.partition(".")[2] for name, _ in _all_modules(owners)]
    for path in others:
        if path not in known:
            raise PlacementError(
                f"others names {path!r}, and there is no such module in {', '.join(owners)}.{did_you_mean(path, known)}"
            )


def _all_modules(owners: Mapping[str, object]) -> list[tuple[str, nn.Module]]:
    return [
        (f"{name}.{path}" if path else name, inside)
        for name, held in held_modules(owners)
        for path, inside in held.named_modules()
    ]


def _state_of(relaxation: Relaxation) -> dict[str, dict[str, Tensor]]:
    return {key: dict(residual.state_dict()) for key, residual in relaxation}


def fill(relaxation: Relaxation, state: Mapping[str, Mapping[str, Tensor]], what: str) -> None:
    """Load the entry "residuals" of `RelaxedInside.state`. `what` names the network in messages.

    Raises:
        CheckpointError: The state is of a network with other residuals.
    """
    here, there = list(relaxation.residuals), list(state)
    if here != there:
        odd = next(iter(sorted(set(here) ^ set(there)) or here))
        raise CheckpointError(
            f"the checkpoint's residuals are not those of {what}, such as {odd!r} ({len(there)} there, {len(here)} here): use "
            f"the placement it was trained with"
        )
    for key, residual in relaxation:
        try:
            residual.load_state_dict(state[key])
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint's residual {key!r} does not fit that of {what}: {error}"
            ) from error


def _residuals(module: nn.Module) -> list[Residual]:
    return [inside for inside in module.modules() if isinstance(inside, Residual)]


class _Hook:
    """A hook of a module's state, which is active as long as one of its residuals is in the module.

    After an exception ended a training run, the user may project the network and relax it again: the new residuals belong
    in the state.

    Args:
        residuals: The residuals in the module.
    """

    def __init__(self, residuals: list[Residual]) -> None:
        self._about = residuals

    def is_over(self, module: nn.Module) -> bool:
        """Whether none of the residuals is in the module any more."""
        inside = {id(residual) for residual in _residuals(module)}
        return not any(id(residual) in inside for residual in self._about)

    @staticmethod
    def at_work(module: nn.Module) -> bool:
        """Whether the module has an active hook. Inactive ones are removed.

        They cannot remove themselves while torch iterates over the hooks.
        """
        found = False
        for hooks in (module._state_dict_hooks, module._load_state_dict_post_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(hook, _Hook) and hook.is_over(module):
                    del hooks[key]
                found = found or (isinstance(hook, _Hook) and key in hooks)
        return found


class _LeavesResidualsOut(_Hook):
    """A hook of `state_dict` that leaves the residuals out."""

    def __call__(
        self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
    ) -> None:
        if not self.is_over(module):
            for key in [key for key in state if key.startswith(prefix) and of_residual(key)]:
                del state[key]


class _MissesNoResiduals(_Hook):
    """A hook of `load_state_dict` that does not report the residuals as missing."""

    def __call__(self, module: nn.Module, incompatible: Any) -> None:
        if not self.is_over(module):
            missing = incompatible.missing_keys
            missing[:] = [key for key in missing if not of_residual(key)]
