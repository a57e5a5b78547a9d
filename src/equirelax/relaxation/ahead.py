"""Residuals that are added to the input of a later module: `gamma f(x)` with the x of one call, added to the first argument of
another.

So a residual stands behind a nonlinearity that has no module of its own, or one that several modules share. It is a child of
the module that it reads, whose forward hook computes it, and a pre-hook of the module that it is added to. Between the two
calls it waits, as nothing does between two forwards.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from equirelax.errors import RelaxationStateError
from equirelax.relaxation.kinds import ResidualMap
from equirelax.relaxation.residual import Residual
from equirelax.relaxation.site import Site, first_parameter


class AheadResidual(Residual):
    """A residual of the module at `site.path`, added to the first argument of the one at `site.adds_to`."""

    def __init__(self, site: Site, map: ResidualMap, reference: Tensor | None = None) -> None:
        super().__init__(site, map, reference)
        self._waiting: Tensor | None = None

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the module that is read."""
        if self.active:
            self._waiting = self(self.take(module, args, kwargs))

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
