"""The base class of placements, which choose the modules to relax and their residuals."""

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
    """A site and the kind of its residual."""

    site: Site
    kind: ResidualKind


@dataclass(frozen=True)
class Survey:
    """The result of a survey: the residuals to attach, and the modules to leave alone (path -> (status, reason))."""

    placed: tuple[Placed, ...]
    left: dict[str, tuple[str, str]]


def with_starts(placed: Iterable[Placed]) -> tuple[Placed, ...]:
    """Mark the first block of every residual stream as its start."""
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

    Subclasses are frozen dataclasses that are registered with `@equirelax.relaxation.spec`, so that checkpoints can hold them.
    """

    @abstractmethod
    def survey(self, model: nn.Module) -> Survey:
        """Choose the residuals of a model that is not relaxed, or whose residuals are to be ignored.

        Raises:
            PlacementError: nothing can be relaxed, or a pattern of the user matches nothing.
        """


_NAMED: dict[str, Callable[[], Placement]] = {}


def register_placement(name: str, make: Callable[[], Placement]) -> None:
    """Make `relax(model, placement=name)` use `make()`."""
    _NAMED[name] = make


def names() -> tuple[str, ...]:
    """The names of the registered placements."""
    return tuple(sorted(_NAMED))


def get(name: str) -> Placement:
    """The placement registered as `name`."""
    if name not in _NAMED:
        raise PlacementError(
            f"no placement {name!r}.{did_you_mean(name, names())} Registered are {', '.join(names())}"
        )
    return _NAMED[name]()
