"""Coordinates relative to the mean of their graph, which keeps translations exact.

In a batch (batch, nodes, n) the mean is over the nodes, or over those that a mask keeps. In a flat batch (nodes of all
graphs, n), as in PyTorch Geometric, an argument with every node's graph number, or the edges, say which rows belong to
one graph. A flat batch without either is rejected, because graphs that are centred together would influence one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError
from equirelax.relaxation.sites import Argument, Named, Reader, parameters_of


@dataclass(frozen=True)
class Graphs:
    """The arguments by which a call says which of its nodes belong to one graph.

    Args:
        batch: The number of every node's graph, (nodes,), integer.
        edges: (2, edges) from row 0 to row 1. In a call without `batch`, a node's mean is over itself and the nodes whose edges
            reach it, which for fully connected graphs is the graph's mean. A call with neither has one graph.
        mask: (..., nodes), true for nodes that exist.
        one_graph: Whether all rows of a flat call are one graph.
    """

    batch: Argument | None = None
    edges: Argument | None = None
    mask: Argument | None = None
    one_graph: bool = False

    @classmethod
    def of(
        cls,
        module: nn.Module,
        path: str,
        *,
        batch: Named | None = None,
        edges: Named | None = None,
        mask: Named | None = None,
        one_graph: bool = False,
    ) -> Graphs:
        """Make it from the names of arguments of a module's forward.

        If none is named and there is not only one graph, arguments called `batch` and `edge_index` are used if the forward has
        them.

        Raises:
            PlacementError: The forward lacks a named argument.
        """
        names = {parameter.name for parameter in parameters_of(module)}
        if batch is None and edges is None and not one_graph:
            batch = "batch" if "batch" in names else None
            edges = "edge_index" if "edge_index" in names else None
        found = [
            None if given is None else Argument.of(module, given, path) for given in (batch, edges, mask)
        ]
        return cls(found[0], found[1], found[2], one_graph)

    def mean(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], path: str) -> Tensor:
        """The mean of the coordinates x (..., nodes, n) over every node's graph, in the shape of x or with 1 for the nodes.

        Raises:
            PlacementError: Nothing says which rows of a flat call belong to one graph.
        """
        if x.dim() == 2 and not self.one_graph:
            if self.batch is None and self.edges is None:
                raise PlacementError(
                    f"{path or 'the model'}: nothing says which of the {len(x)} rows of coordinates are of one graph, so their "
                    "means are not known. Name the argument with the number of every node's graph, batch=..., or the edges, "
                    "edges=...; one_graph=True says that every call has one graph"
                )
            numbers = None if self.batch is None else self.batch.given(args, kwargs)
            edges = None if self.edges is None else self.edges.given(args, kwargs)
            if numbers is None and edges is not None:
                return neighbourhood_mean(x, edges)
            return group_means(x, numbers)
        there = None if self.mask is None else self.mask.given(args, kwargs)
        return x.mean(dim=-2, keepdim=True) if there is None else mean_where(x, there)


def group_means(x: Tensor, group: Tensor | None) -> Tensor:
    """The mean, for every row of x (rows, dim), over the rows with the same number in `group`.

    `group` is (rows,) long, or None for one group. The result has shape (rows, dim), or (1, dim) for None.
    """
    if group is None:
        return x.mean(dim=0, keepdim=True)
    # use as many slots as rows: finding the largest number, which may be above that, would wait for the device
    slot = _consecutive(group)
    total = x.new_zeros(x.shape).index_add(0, slot, x)
    count = x.new_zeros(x.shape[0], 1).index_add(0, slot, x.new_ones(x.shape[0], 1))
    return (total / count.clamp(min=1)).index_select(0, slot)


def _consecutive(numbers: Tensor) -> Tensor:
    """Replace integers (rows,) by consecutive numbers 0, 1, ..., keeping which of them are equal."""
    order = numbers.argsort()
    ordered = numbers.index_select(0, order)
    rank = (ordered != ordered.roll(1)).long().cumsum(0)
    # the roll compares the first with the last, which differ unless all are equal
    return torch.empty_like(order).scatter(0, order, (rank - rank[:1]))


def neighbourhood_mean(x: Tensor, edge_index: Tensor) -> Tensor:
    """The mean of x (nodes, 3) over every node and the sources of its incoming edges.

    edge_index (2, edges) is (source, target).
    """
    source, target = edge_index[0], edge_index[1]
    total = x.index_add(0, target, x[source])
    count = torch.ones_like(x[:, :1]).index_add(0, target, torch.ones_like(x[source][:, :1]))
    return total / count


def mean_where(x: Tensor, there: Tensor) -> Tensor:
    """The mean of x (..., nodes, n) over the nodes that are `there` (..., nodes): (..., 1, n); 0 if there are none."""
    weight = there.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(dim=-2, keepdim=True) / weight.sum(dim=-2, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class Positions(Reader):
    """Positions (rows, n) of a call, relative to the mean of their graph, or as they are.

    Args:
        argument: The positions.
        graphs: The graphs over which the mean is taken. None reads positions as they are, which also relaxes translations.
    """

    argument: Argument
    graphs: Graphs | None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        x: Tensor = self.argument(args, kwargs)
        return x if self.graphs is None else x - self.graphs.mean(x, args, kwargs, self.argument.name)
