"""Sums over graphs and edges, on transposed features (dim, rows)."""

from __future__ import annotations

from torch import Tensor


def gather(x: Tensor, index: Tensor) -> Tensor:
    """(dim, n), index (e,) -> (dim, e): column ``index[j]`` of x at place j."""
    return x.index_select(1, index)


def scatter_sum(x: Tensor, index: Tensor, count: int) -> Tensor:
    """(dim, e), index (e,) -> (dim, count): sums of the columns that share an index."""
    return x.new_zeros(x.shape[0], count).index_add(1, index, x)


def scatter_mean(x: Tensor, index: Tensor, count: int) -> Tensor:
    """As `scatter_sum`, divided by the number of columns (0 where there is none)."""
    columns = x.new_zeros(count).index_add(0, index, x.new_ones(index.shape))
    return scatter_sum(x, index, count) / columns.clamp(min=1)
