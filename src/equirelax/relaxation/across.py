"""Residuals across modules: those that read, or are added to, the call of another module than their own.

- A *captured* input, such as raw positions, is read at another module's call, and put behind what the block gets.
- A residual *ahead* is added to the first argument of a later module, so that it stands behind a nonlinearity that has no
  module of its own, or one that several modules share.
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

    It has a pre-hook on the module at `source` of its members' sites, and a hook on the relaxed model.

    Attributes:
        members: Those residuals, in the model's order.
    """

    def __init__(self) -> None:
        self.members: list[Any] = []

    @abstractmethod
    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the module whose call is read."""

    @abstractmethod
    def end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Hook of the relaxed model, called also when its forward raises: forget the forward."""


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
        # also when the forward raises, so that nothing of it is left
        model.register_forward_hook(shared.end, with_kwargs=True, always_call=True)


@dataclass(frozen=True)
class CapturedSite(BlockSite):
    """Some arguments of a block and, behind them on the last axis, what is read of another module's call, (rows, dim).

    Args:
        captured: What is read of that call.
        source: Path of that module ("" is the relaxed model).
    """

    captured: Reader = field(kw_only=True)
    source: str = field(default="", kw_only=True)

    @property
    def shares(self) -> tuple[str, Reader]:
        """Residuals for which it is equal share what is captured."""
        return self.source, self.captured


class Capture(Shared):
    """An input of another module's call, such as raw positions, which residuals read as the first one's site says.

    It keeps its place in the graph: forces of a relaxed energy go through it too.

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
        # Copies and pickles must not carry a forward that is under way.
        return {"members": self.members, "value": None}


@residual_for(CapturedSite)
class CapturingResidual(Residual):
    """A residual that reads its block's inputs and, after them, what was captured.

    Attributes:
        shared: The capture, of all residuals that read the same; not a submodule.
    """

    site: CapturedSite
    shared: Capture

    def __init__(self, site: CapturedSite, map: ResidualMap, reference: Tensor | None = None) -> None:
        super().__init__(site, map, reference)
        self.shared = Capture()

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """[what the block gets, what was captured], on the last axis.

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
    """All features of the first argument of one module, to the first argument of another one.

    Args:
        adds_to: Path of the module to whose first argument the residual is added, before that is called.
    """

    adds_to: str = field(kw_only=True)

    def why(self, root: str = "") -> str:
        """Name the module to whose input it is added."""
        return f"added to the input of {join(root, self.adds_to)}"


@residual_for(AheadSite)
class AheadResidual(Residual):
    """A residual that waits between the call that it reads and the one that it is added to.

    Nothing waits between two forwards, also after one that raised.
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
        """Put hooks on the module that is read, on the one that is added to, and on the relaxed model."""
        super().hook_up(model)
        model.get_submodule(self.adds_to).register_forward_pre_hook(self.add_ahead, with_kwargs=True)
        model.register_forward_hook(self.end_forward, with_kwargs=True, always_call=True)

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the module that is read, called also when its forward raises."""
        if self.active and not self.has_failed(output):
            self._waiting = self(self.take(module, args, kwargs), added=True)

    def end_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Hook of the relaxed model, called also when its forward raises: forget the forward."""
        self._waiting = None

    def add_ahead(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Pre-hook of the module that is added to.

        Raises:
            RelaxationStateError: the module that is read was not called before.
            RepresentationError: what is added does not fit the argument.
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
        # Copies and pickles must not carry a forward that is under way.
        return {**super().__getstate__(), "_waiting": None}
