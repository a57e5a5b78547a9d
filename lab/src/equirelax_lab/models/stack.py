"""Batches of graphs with the same edges, stacked: (dim, nodes of one graph, graphs) instead of (dim, all nodes).

Gathering the features of nodes for their edges then copies blocks as long as the number of graphs, not single numbers. Every
batch can be stacked, in the worst case as one graph with all nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equirelax_lab.models.readable import is_mapped, only_mapped, values_are_readable


@dataclass(frozen=True)
class Stack:
    """``copies`` graphs with ``nodes`` nodes each and the same edges: source and target (edges,) within one graph."""

    source: Tensor
    target: Tensor
    nodes: int
    copies: int

    @classmethod
    def of(cls, edge_index: Tensor, count: int) -> Stack:
        """Find the stack with the most copies for edges (2, e) between `count` nodes.

        Both the nodes and the edges must be ordered graph by graph. The result depends on values, so a stack is searched for
        only on the CPU, and not under compilation or where `torch.func.vmap` maps over the edges. Otherwise it is one graph.
        """
        edges = edge_index.shape[1]
        if edge_index.device.type == "cpu" and values_are_readable(edge_index) and edges > 0:
            for nodes in range(1, count // 2 + 1):
                if count % nodes == 0 and (edges * nodes) % count == 0:
                    size = edges * nodes // count
                    if _repeats(edge_index, nodes, size):
                        return cls(edge_index[0, :size], edge_index[1, :size], nodes, count // nodes)
        return cls(edge_index[0], edge_index[1], count, 1)

    def stack(self, x: Tensor) -> Tensor:
        """(dim, rows), graph by graph -> (dim, rows of one graph, copies)."""
        return x.reshape(x.shape[0], self.copies, x.shape[1] // self.copies).transpose(1, 2).contiguous()

    def unstack(self, x: Tensor) -> Tensor:
        """(dim, rows of one graph, copies) -> (dim, rows), graph by graph."""
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[1] * x.shape[2])

    def sum_at_targets(self, x: Tensor) -> Tensor:
        """(dim, edges, copies) -> (dim, nodes, copies)."""
        return x.new_zeros(x.shape[0], self.nodes, self.copies).index_add(1, self.target, x)


def _repeats(edge_index: Tensor, nodes: int, size: int) -> bool:
    """Whether edges are `size` edges among the first `nodes` nodes, then the same ones shifted, and so on."""
    # checking a single number rejects nearly all candidates
    if int(edge_index[0, size]) != int(edge_index[0, 0]) + nodes:
        return False
    if not torch.equal(edge_index[:, size:], edge_index[:, :-size] + nodes):
        return False
    return int(edge_index[:, :size].max()) < nodes


class _Select(torch.autograd.Function):
    """`x.index_select(dim, index)` for members x under `torch.func.vmap` and an index that they share: one call for all.

    Torch's own rule turns it into a gather, whose derivative adds up number by number.
    """

    @staticmethod
    def forward(x: Tensor, dim: int, index: Tensor) -> Tensor:
        return x.index_select(dim, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save nothing: the operations that `vmap` calls are differentiated by themselves."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, dim: int, index: Tensor
    ) -> tuple[Tensor, int]:
        return x.movedim(in_dims[0] or 0, 0).index_select(dim + 1, index), 0


def select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """`x.index_select(dim, index)`; dim is not negative."""
    if only_mapped() and is_mapped(x) and not is_mapped(index):
        chosen: Tensor = _Select.apply(x, dim, index)
        return chosen
    return x.index_select(dim, index)


def sum_rows(x: Tensor, index: Tensor, count: int) -> Tensor:
    """Sum the columns that share an index: (dim, rows), index (rows,) -> (dim, count)."""
    return x.new_zeros(x.shape[0], count).index_add(1, index, x)


def mean_rows(x: Tensor, index: Tensor, count: int) -> Tensor:
    """Average the columns that share an index, as `sum_rows` does; 0 if there is none."""
    columns = x.new_zeros(count).index_add(0, index, x.new_ones(index.shape))
    return sum_rows(x, index, count) / columns.clamp(min=1)


def centres(positions: Tensor, graph: Tensor | None) -> Tensor:
    """Compute the mean position of every node's graph, for positions (n, 3): (n, 3), or (1, 3) if graph is None (one graph).

    graph (n,) long holds numbers from 0 to n - 1.
    """
    if graph is None:
        return positions.mean(dim=0, keepdim=True)
    # as many places as nodes are always enough, without reading the largest number
    return mean_rows(positions.t(), graph, positions.shape[0]).t().index_select(0, graph)
