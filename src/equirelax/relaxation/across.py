"""Residuals across modules, which read or are added to the call of a module other than their own.

- A *captured* input, such as raw positions, is read at another module's call and appended to the block's inputs.
- A residual *ahead* is added to the first argument of a later module, so that it comes after a nonlinearity that is not a
  module, or one that several modules share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import RelaxationStateError
from equirelax.relaxation.columns import dense
from equirelax.relaxation.hooks import HookOwner
from equirelax.relaxation.kinds import ResidualMap
from equirelax.relaxation.residual import Residual, residual_for
from equirelax.relaxation.sites import BlockSite, Reader, RowSite, first_parameter, join
from equirelax.relaxation.surroundings import in_backward


class Shared(HookOwner):
    """State that several residuals of a model share during a forward, such as an input that is captured for all of them.

    It has a pre-hook on the module at the `source` of its members' sites, and a hook on the relaxed model.

    Attributes:
        members: The residuals that share it, in the model's order.
    """

    def __init__(self) -> None:
        self.members: list[Any] = []

    @abstractmethod
    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the call, as a pre-hook of the module at `source`."""

    @abstractmethod
    def end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forget the forward, as a hook of the relaxed model that also runs when its forward raises."""


def share(model: nn.Module, residuals: Iterable[Residual]) -> None:
    """Give residuals whose sites have the same `shares` one `Shared`, and put its hooks on the model."""
    found: dict[Any, Shared] = {}
    for residual in residuals:
        if residual.shared is not None:
            site: Any = residual.site
            residual.shared = found.setdefault(site.shares, residual.shared)
            residual.shared.members.append(residual)
    for shared in found.values():
        source = model.get_submodule(shared.members[0].site.source)
        source.register_forward_pre_hook(shared.begin, with_kwargs=True)
        # also when the forward raises, so that no state of it is left
        model.register_forward_hook(shared.end, with_kwargs=True, always_call=True)


@dataclass(frozen=True)
class CapturedSite(BlockSite):
    """Some arguments of a block and, after them on the last axis, features (rows, dim) from another module's call.

    Args:
        captured: The reader of that call.
        source: Path of that module ("" is the relaxed model).
    """

    captured: Reader = field(kw_only=True)
    source: str = field(default="", kw_only=True)

    @property
    def shares(self) -> tuple[str, Reader]:
        """A key that is equal for residuals that share the captured input."""
        return self.source, self.captured


class Capture(Shared):
    """An input of another module's call, such as raw positions, which is read as the first residual's site says.

    It stays in the autograd graph, so forces of a relaxed energy include it.

    Attributes:
        value: The input of the current forward, rows first; None between forwards.
    """

    def __init__(self) -> None:
        super().__init__()
        self.value: Tensor | None = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the call."""
        self.value = None
        if any(member.active for member in self.members):
            self.value = dense(self.members[0].site.captured(args, kwargs))

    def end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forget the input."""
        self.value = None

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles must not hold a forward in progress.
        return {"members": self.members, "value": None}


@residual_for(CapturedSite)
class CapturingResidual(Residual):
    """A residual that reads its block's inputs and, after them, the captured input.

    Attributes:
        shared: The capture, common to all residuals that read the same input; not a submodule.
    """

    site: CapturedSite
    shared: Capture

    def __init__(self, site: CapturedSite, map: ResidualMap, reference: Tensor | None = None) -> None:
        super().__init__(site, map, reference)
        self.shared = Capture()

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return [the block's inputs, the captured input], on the last axis.

        Raises:
            RelaxationStateError: the block is called outside a forward of the relaxed model.
        """
        value = self.shared.value
        if value is None:
            how = (
                "checkpoint the whole relaxed model (use_reentrant=False), not single blocks"
                if in_backward()
                else "call the whole model, which neither the block alone nor model.forward(...) does"
            )
            raise RelaxationStateError(
                f"{self.site.key}: {how}: its residual also reads an input of {self.site.source or 'the model'}, captured "
                "by a hook there"
            )
        own = dense(self.site.read(args, kwargs))
        return torch.cat([own, value.to(own.dtype)], dim=-1)


@dataclass(frozen=True)
class AheadSite(RowSite):
    """A site from all features of one module's first argument to the first argument of another module.

    Args:
        adds_to: Path of the module to whose first argument the residual is added, before that is called.
    """

    adds_to: str = field(kw_only=True)

    def why(self, root: str = "") -> str:
        """Name the module to whose input it is added."""
        return f"added to the input of {join(root, self.adds_to)}"


@residual_for(AheadSite)
class AheadResidual(Residual):
    """A residual that waits between the call that it reads and the call to which it is added.

    Nothing waits between two forwards, even after one that raised.
    """

    site: AheadSite

    def __init__(self, site: AheadSite, map: ResidualMap, reference: Tensor | None = None) -> None:
        super().__init__(site, map, reference)
        self._waiting: Tensor | None = None

    @property
    def adds_to(self) -> str:
        """Path of the module to whose first argument it is added."""
        return self.site.adds_to

    def hook_up(self, model: nn.Module) -> None:
        """Put hooks on the module that is read, on the module it is added to, and on the relaxed model."""
        super().hook_up(model)
        model.get_submodule(self.adds_to).register_forward_pre_hook(self.add_ahead, with_kwargs=True)
        model.register_forward_hook(self.end_forward, with_kwargs=True, always_call=True)

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the module that is read, also called when its forward raises."""
        if self.active and not self.has_failed(output):
            self._waiting = self(self.take(module, args, kwargs), added=True)

    def end_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Forget the forward, as a hook of the relaxed model that also runs when its forward raises."""
        self._waiting = None

    def add_ahead(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Add the residual, as a pre-hook of the module to whose first argument it is added.

        Raises:
            RelaxationStateError: the module that is read was not called before.
            RepresentationError: the added term does not fit the argument.
        """
        if not self.active:
            return None
        delta, self._waiting = self._waiting, None
        if delta is None:
            raise RelaxationStateError(
                f"{self.site.adds_to} ({type(module).__name__}) was called without {self.site.path} before it, whose residual "
                f"is added to its input: call the whole network, or leave it out with exclude=({self.site.path!r},)"
            )
        if args:
            return (self.add(module, args[0], delta), *args[1:]), kwargs
        name = first_parameter(module)
        if name is None or name not in kwargs:
            raise RelaxationStateError(
                f"{self.site.adds_to} ({type(module).__name__}) was called without a first argument, to which the residual of "
                f"{self.site.path} is added"
            )
        return args, {**kwargs, name: self.add(module, kwargs[name], delta)}

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles must not hold a forward in progress.
        return {**super().__getstate__(), "_waiting": None}
