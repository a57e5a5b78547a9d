"""Network files: the names of an architecture's classes, a check of its structure, and the sites of its residuals.

A layer family knows one type of layer. A network file knows where, in one published architecture, residuals are useful, and how
they are attached if a layer's own output is the wrong place. The default placement uses it before the families,
even if the network is a part of a larger model. It must not import the network.
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
        classes: names of the classes that a module must have.
        kind: The kind of its residuals unless the user chooses one; None takes dense ones.
    """

    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    kind: ClassVar[ResidualKind | None] = None

    @abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Whether a module of one of `classes` has the architecture's structure, since a name alone is not enough."""

    @abstractmethod
    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """The sites of the network's residuals, in order. Several sites of one module have different slots.

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
    """Class decorator that makes an architecture known to `relax`.

    Raises:
        PlacementError: another class is registered under the name.
    """
    known = type(_NETWORKS[cls.name]) if cls.name in _NETWORKS else cls
    # a class that is defined again, as when a notebook cell runs twice, replaces the earlier one
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise PlacementError(f"two networks are registered as {cls.name!r}: {known!r} and {cls!r}")
    _NETWORKS[cls.name] = cls()
    return cls


def recognised(modules: list[tuple[str, nn.Module]], name: str | None = None) -> list[Recognised]:
    """Find the known networks among a model's modules, outermost first. One inside another counts as part of it.

    Args:
        modules: (path, module) of every module, as from `named_modules`.
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
