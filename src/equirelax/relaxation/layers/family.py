"""Layer families: each recognises its modules, says how they read and write, and folds maps into them.

To add a family, write one file with one `LayerFamily` under `@register`, and one test that subclasses
`equirelax.testing.LayerFamilyConformance`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from equirelax.errors import PlacementError, UnfoldableError
from equirelax.relaxation.matrices import Matrices
from equirelax.relaxation.sites import Site
from equirelax.relaxation.surroundings import is_compiled

_FAMILIES: dict[str, LayerFamily] = {}


@dataclass(frozen=True)
class Skip:
    """The reason why a module of a family is left alone."""

    reason: str


@dataclass
class Fold:
    """The effect of folding a dense map into a layer. Nothing is written before `commit`.

    Args:
        weight: the part that the layer can express, as a dense matrix (out_dim, in_dim).
        bias: the part of the bias that it can express, (out_dim,), or None.
        writes: (parameter, amount to add to it) pairs.
        after: a function to call after the additions, which updates values that the module derives from its parameters.
    """

    weight: Tensor
    bias: Tensor | None = None
    writes: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    after: Callable[[], None] | None = None

    def commit(self) -> None:
        """Add the amounts to the parameters, in place."""
        for parameter, amount in self.writes:
            parameter.data.add_(amount.to(parameter))
        if self.after is not None:
            self.after()


def no_bias(module: nn.Module, site: Site) -> UnfoldableError:
    """The error for a residual with a bias on a layer that has no bias."""
    return UnfoldableError(
        f"{site.path} ({type(module).__name__}) has no bias to fold the residual's bias into; use a residual without bias, "
        'or project with mode="drop" or unfoldable="drop"'
    )


class LayerFamily(ABC):
    """One kind of equivariant layer."""

    name: str

    @abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Whether the module is of this family, by its attributes. It must not import the library that defines the module."""

    @abstractmethod
    def site(self, path: str, module: nn.Module) -> Site | Skip:
        """The site of the module's residual, or the reason why it has none."""

    @abstractmethod
    def fold(self, module: nn.Module, site: Site, weight: Tensor, bias: Tensor | None) -> Fold:
        """Project the map `x -> weight x + bias` orthogonally onto the maps that the layer can express.

        Raises:
            UnfoldableError: the layer's weights cannot hold it. The message has the path and the reason.
        """

    def derived(self, module: nn.Module) -> tuple[str, ...]:
        """Names of buffers that the module computes from its parameters and has only in some states.

        A state dict does not need them.
        """
        return ()

    def matrices(self, module: nn.Module) -> dict[str, tuple[Matrices, ...]]:
        """The matrices that the module's parameters hold, by name, if their shapes do not show them."""
        return {}

    def refresh(self, module: nn.Module) -> None:
        """Recompute the derived buffers, after the parameters were set from outside."""
        return


def register(cls: type[LayerFamily]) -> type[LayerFamily]:
    """Class decorator that makes a family known to `relax`, in the order of registration."""
    _FAMILIES[cls.name] = cls()
    return cls


def families() -> dict[str, LayerFamily]:
    """All registered families by name."""
    return dict(_FAMILIES)


def families_of(module: nn.Module) -> Iterator[LayerFamily]:
    """The families that recognise a module.

    For a module wrapped by `torch.compile` they recognise the module inside, which calls the hooks, and not the wrapper, which
    forwards its attributes.
    """
    if not is_compiled(module):
        yield from (family for family in families().values() if family.matches(module))


def get_family(name: str | None, path: str) -> LayerFamily:
    """The family called `name`, or an error that names the module if there is none."""
    if name is None or name not in _FAMILIES:
        raise PlacementError(
            f"{path}: no layer family {name!r}; known are {', '.join(sorted(_FAMILIES))}. Register yours "
            f"with @equirelax.relaxation.layers.register before loading"
        )
    return _FAMILIES[name]
