"""Blocks of other people's networks that take features and coordinates and return both, such as egnn-pytorch's.

A block is called as `block(features, coordinates, ...)` and returns `(features, coordinates)` in some order, with
tensors (..., nodes, channels) and (..., nodes, n). Two residuals read [features, coordinates]: one is added to the
features, where it mixes vectors into scalars, one to the coordinates, where it mixes components. Where which
argument stands is declared. Coordinates are read relative to their mean over the nodes, so that translations stay
exact, or as they are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError
from equirelax.relaxation.maps import MLP, ResidualKind
from equirelax.relaxation.placements.declarations import declared_paths
from equirelax.relaxation.placements.placement import Placed, Placement, Survey, own_modules
from equirelax.relaxation.placements.schnet import optional
from equirelax.relaxation.site import AddToItem, Reader, Site, argument
from equirelax.relaxation.spec import spec
from equirelax.symmetry import E, O, positions, trivial, vector

Argument = tuple[int, str]


@dataclass(frozen=True)
class FeaturesAndCoordinates(Reader):
    """[features, coordinates] of a call, (..., nodes, channels + n).

    Args:
        features, coordinates: (position, keyword) of the two arguments.
        mask: (position, keyword) of a boolean (..., nodes) that says which nodes are there, or None.
        centred: whether coordinates are taken relative to their mean over the nodes that are there.
        path: of the module, for messages.
    """

    features: Argument
    coordinates: Argument
    mask: Argument | None
    centred: bool
    path: str

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        h, x = argument(args, kwargs, *self.features), argument(args, kwargs, *self.coordinates)
        if not isinstance(h, Tensor) or not isinstance(x, Tensor) or h.shape[:-1] != x.shape[:-1]:
            shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (h, x)]
            raise PlacementError(
                f"{self.path}: features {self.features} and coordinates {self.coordinates} of the call must be "
                f"tensors (..., nodes, channels) and (..., nodes, n); they are {shapes[0]} and {shapes[1]}. Say in "
                f"the placement which arguments they are"
            )
        if self.centred:
            there = None if self.mask is None else optional(args, kwargs, *self.mask)
            x = x - (x.mean(dim=-2, keepdim=True) if there is None else _mean_where(x, there))
        return torch.cat([h, x.to(h.dtype)], dim=-1)


def _mean_where(x: Tensor, there: Tensor) -> Tensor:
    """Mean of x (..., nodes, n) over the nodes that are there (..., nodes): (..., 1, n); 0 where none is."""
    weight = there.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(dim=-2, keepdim=True) / weight.sum(dim=-2, keepdim=True).clamp(min=1)


@spec("coordinate-blocks")
@dataclass(frozen=True)
class CoordinateBlocks(Placement):
    """Two residuals on every block, one added to its features (slot "h"), one to its coordinates (slot "x").

    Args:
        target: a path pattern ("layers.*.1"), the name of a class, or its full name with the module.
        channels: of the features, which are invariant.
        features, coordinates, mask: (position, keyword) of the call's arguments; mask None: there is none.
        outputs: positions of features and coordinates in the tuple that the block returns.
        residual: what the residuals are made of.
        centred: read coordinates relative to their mean over the nodes (axis -2), or as they are, which relaxes
            translations too.
        size: n, the dimension of space.

    Examples:
        >>> CoordinateBlocks("EGNN", channels=32, features=(0, "feats"), coordinates=(1, "coors")).size
        3
    """

    target: str
    channels: int
    features: Argument = (0, "h")
    coordinates: Argument = (1, "x")
    mask: Argument | None = None
    outputs: tuple[int, int] = (0, 1)
    residual: ResidualKind = dataclasses.field(default_factory=lambda: MLP(layers=2, init="normal", std=1e-3))
    centred: bool = True
    size: int = 3

    def survey(self, model: nn.Module) -> Survey:
        """Every module that `target` names.

        Raises:
            PlacementError: where it names none, or one inside another.
        """
        modules = own_modules(model)
        found = declared_paths(modules, self.target, "CoordinateBlocks")
        for path in found:
            if any(path != above and (above == "" or path.startswith(f"{above}.")) for above in found):
                raise PlacementError(
                    f"CoordinateBlocks: {self.target!r} names {path} and a module around it; give a narrower pattern"
                )
        sites = [site for path, _ in modules if path in found for site in self._sites(path)]
        return Survey(tuple(Placed(site, self.residual) for site in sites), {})

    def _sites(self, path: str) -> tuple[Site, Site]:
        group = O(self.size) if self.centred else E(self.size)
        scalars = trivial(group, self.channels)
        inputs = scalars + (vector(group) if self.centred else positions(group))
        reader = FeaturesAndCoordinates(self.features, self.coordinates, self.mask, self.centred, path)
        relaxes = f"O({self.size})" if self.centred else f"E({self.size}), translations too"
        h, x = self.outputs
        return (
            Site(path, None, inputs, scalars, reader, AddToItem(h), slot="h", relaxes=relaxes),
            Site(path, None, inputs, vector(group), reader, AddToItem(x), slot="x", relaxes=relaxes),
        )
