"""Blocks of other people's networks that take features and coordinates and return both, such as egnn-pytorch's.

A block is called as `block(features, coordinates, ...)` and returns `(features, coordinates)` in some order, with
tensors (..., nodes, channels) and (..., nodes, n). Two residuals read [features, coordinates]: one is added to the
features, where it mixes vectors into scalars, one to the coordinates, where it mixes components. Where which
argument stands is declared. Coordinates are read relative to their mean over the nodes, so that translations stay
exact, or as they are.

The mean is over the last axis but one, which holds the nodes of one graph. Blocks of flat graphs, (nodes of all graphs,
channels), tell them apart by an argument with the number of every node's graph, or by their edges: an argument called
`batch` or `edge_index` is used where the block's forward has one, and any other is named in the placement. Rows of several
graphs that nothing tells apart would be centred together.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError
from equirelax.relaxation.entries import own_modules
from equirelax.relaxation.kinds import MLP, ResidualKind
from equirelax.relaxation.placements.declarations import declared_paths
from equirelax.relaxation.placements.placement import (
    Placed,
    Placement,
    Survey,
)
from equirelax.relaxation.placements.schnet import group_means, optional
from equirelax.relaxation.sites import BlockSite, Reader, Site, argument, parameters_of
from equirelax.relaxation.spec import spec
from equirelax.symmetry import E, O, positions, trivial, vector

Argument = tuple[int, str]


def neighbourhood_mean(x: Tensor, edge_index: Tensor) -> Tensor:
    """Mean of x (nodes, 3) over every node and the sources of its incoming edges;
    edge_index (2, edges) is (source, target).
    """
    source, target = edge_index[0], edge_index[1]
    total = x.index_add(0, target, x[source])
    count = torch.ones_like(x[:, :1]).index_add(0, target, torch.ones_like(x[source][:, :1]))
    return total / count


@dataclass(frozen=True)
class FeaturesAndCoordinates(Reader):
    """[features, coordinates] of a call, (..., nodes, channels + n).

    Args:
        features, coordinates: (position, keyword) of the two arguments.
        mask: (position, keyword) of a boolean (..., nodes) that says which nodes are there, or None.
        batch: (position, keyword) of the number (nodes,) of every node's graph, or None.
        edges: (position, keyword) of edges (2, edges) from row 0 to row 1: without `batch`, a node's mean is over itself and
            the nodes whose edges reach it, which for fully connected graphs is the graph's mean.
        centred: Whether coordinates are taken relative to their mean over the nodes that the mask keeps.
        path: Path of the module, for messages.
    """

    features: Argument
    coordinates: Argument
    mask: Argument | None
    batch: Argument | None
    edges: Argument | None
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
            x = x - self._mean(x, args, kwargs)
        return torch.cat([h, x.to(h.dtype)], dim=-1)

    def _mean(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The mean of the coordinates (..., nodes, n) of a node's graph, of the shape of x or with 1 in place of the nodes."""
        if x.dim() == 2 and self.batch is not None:
            graph = optional(args, kwargs, *self.batch)
            if graph is not None:
                return group_means(x, graph)
        elif x.dim() == 2 and self.edges is not None:
            return neighbourhood_mean(x, argument(args, kwargs, *self.edges))
        there = None if self.mask is None else optional(args, kwargs, *self.mask)
        return x.mean(dim=-2, keepdim=True) if there is None else _mean_where(x, there)


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
        channels: Number of the features, which are invariant.
        features, coordinates, mask: (position, keyword) of the call's arguments; mask None: there is none.
        outputs: positions of features and coordinates in the tuple that the block returns.
        residual: The kind of the residuals.
        centred: read coordinates relative to their mean over the nodes (axis -2), or as they are, which relaxes
            translations too.
        size: n, the dimension of space.
        batch: (position, keyword) of the number (nodes,) of every node's graph, for flat graphs; None takes an argument called
            `batch` where the block has one, else its `edge_index` (see the module), else all rows are nodes of one graph.

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
    batch: Argument | None = None

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
        sites = [site for path, module in modules if path in found for site in self._sites(path, module)]
        return Survey(tuple(Placed(site, self.residual) for site in sites), {})

    def _sites(self, path: str, module: nn.Module) -> tuple[Site, Site]:
        names = [parameter.name for parameter in parameters_of(module)]
        visible = {name: (names.index(name), name) for name in ("batch", "edge_index") if name in names}
        batch, edges = self.batch or visible.get("batch"), visible.get("edge_index")
        group = O(self.size) if self.centred else E(self.size)
        scalars = trivial(group, self.channels)
        inputs = scalars + (vector(group) if self.centred else positions(group))
        reader = FeaturesAndCoordinates(
            self.features, self.coordinates, self.mask, batch, edges, self.centred, path
        )
        relaxes = f"O({self.size})" if self.centred else f"E({self.size}), translations too"
        h, x = self.outputs
        return (
            BlockSite(path, inputs, scalars, reader=reader, item=h, slot="h", relaxes=relaxes),
            BlockSite(path, inputs, vector(group), reader=reader, item=x, slot="x", relaxes=relaxes),
        )
