"""Placements choose which modules get which residual."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import nn

from equirelax.errors import PlacementError
from equirelax.files import did_you_mean
from equirelax.relaxation.kinds import ResidualKind, StreamStep
from equirelax.relaxation.sites import Site
from equirelax.relaxation.streams import StreamSite


@dataclass(frozen=True)
class Placed:
    """A site and what its residual is made of."""

    site: Site
    kind: ResidualKind


@dataclass(frozen=True)
class Survey:
    """The result of looking at a model: the residuals to attach, and the modules left alone (path -> (status, reason))."""

    placed: tuple[Placed, ...]
    left: dict[str, tuple[str, str]]


def with_starts(placed: Iterable[Placed]) -> tuple[Placed, ...]:
    """The same, with the start of every residual stream at the first of its blocks."""
    found: list[Placed] = []
    begun: set[tuple[str, str]] = set()
    for each in placed:
        site, kind = each.site, each.kind
        if isinstance(site, StreamSite) and isinstance(kind, StreamStep):
            kind = replace(kind, first=site.shares not in begun)
            begun.add(site.shares)
        found.append(Placed(site, kind))
    return tuple(found)


class Placement(ABC):
    """Chooses the residuals of a model.

    Subclasses are frozen dataclasses registered with `@equirelax.relaxation.spec`,
    so that checkpoints carry them.
    """

    @abstractmethod
    def survey(self, model: nn.Module) -> Survey:
        """Look at a model that is not relaxed (or whose residuals are to be ignored) and choose.

        Raises:
            PlacementError: where nothing, or a pattern of the user's, matches.
        """


_NAMED: dict[str, Callable[[], Placement]] = {}


def register_placement(name: str, make: Callable[[], Placement]) -> None:
    """Make `relax(model, placement=name)` use `make()`."""
    _NAMED[name] = make


def names() -> tuple[str, ...]:
    """The registered placements."""
    return tuple(sorted(_NAMED))


def get(name: str) -> Placement:
    """The placement registered as `name`."""
    if name not in _NAMED:
        raise PlacementError(
            f"no placement {name!r}.{did_you_mean(name, names())} Registered are {', '.join(names())}"
        )
    return _NAMED[name]()
