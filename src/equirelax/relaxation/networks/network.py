"""Network files: the names of an architecture's classes, a check of its structure, and the sites of its residuals.

A layer family knows one layer; a network file knows where, in one published architecture, residuals are useful, and how
they are attached where a layer's own output is the wrong place. It is used by the default placement before the families,
also where the network is a part of a larger model. It must not import the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from equirelax.errors import PlacementError
from equirelax.relaxation.kinds import ResidualKind
from equirelax.relaxation.sites import Site

_NETWORKS: dict[str, Network] = {}


class Network(ABC):
    """One published architecture.

    Attributes:
        name: The architecture's name, for messages and summaries.
        classes: names of the classes of which a module must be.
        kind: What its residuals are made of where the user does not say; None takes dense ones.
    """

    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    kind: ClassVar[ResidualKind | None] = None

    @abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Whether a module of one of `classes` has the architecture's structure, since names alone prove nothing."""

    @abstractmethod
    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """The sites of its residuals, in order; several of one module have different slots.

        Args:
            path: Path of the network within the model ("" is the model itself); the sites' paths begin with it.
            module: the network.
        """


@dataclass(frozen=True)
class Recognised:
    """A network that was found in a model.

    Args:
        name: Name of the architecture.
        path: Path of the network within the model.
        sites: path of the module -> its sites.
        kind: See `Network`.
    """

    name: str
    path: str
    sites: dict[str, tuple[Site, ...]]
    kind: ResidualKind | None

    def holds(self, path: str) -> bool:
        """Whether a module of the model is the network or is inside it."""
        return not self.path or path == self.path or path.startswith(f"{self.path}.")


def register_network(cls: type[Network]) -> type[Network]:
    """Class decorator: make an architecture known to `relax`.

    Raises:
        PlacementError: another one has the same name.
    """
    known = type(_NETWORKS[cls.name]) if cls.name in _NETWORKS else cls
    # a class that is defined again, as a notebook's cell that runs twice does, replaces itself
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise PlacementError(f"two networks are registered as {cls.name!r}: {known!r} and {cls!r}")
    _NETWORKS[cls.name] = cls()
    return cls


def recognised(modules: list[tuple[str, nn.Module]], name: str | None = None) -> list[Recognised]:
    """The known networks among a model's modules, outermost first; one inside another is part of that one.

    Args:
        modules: (path, module) of every module, as `named_modules` gives them.
        name: The only architecture to look for; None looks for all.
    """
    found: list[Recognised] = []
    for path, module in modules:
        if any(each.holds(path) for each in found):
            continue
        names = {cls.__name__ for cls in type(module).__mro__}
        for network in _NETWORKS.values():
            if name in (None, network.name) and names & set(network.classes) and network.matches(module):
                sites: dict[str, tuple[Site, ...]] = {}
                for site in network.sites(path, module):
                    sites[site.path] = (*sites.get(site.path, ()), replace(site, network=network.name))
                found.append(Recognised(network.name, path, sites, network.kind))
                break
    return found
