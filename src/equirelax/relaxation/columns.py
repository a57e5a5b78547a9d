"""Features in columns (batch, dim, points), some of which all points of a sample may share.

Point cloud networks pass a global vector (such as the mean) to every point. If it is kept once, and not once per point,
it needs no matrix product per point with a map's weight or in a Gram matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equirelax.relaxation.surroundings import in_transform


@dataclass(frozen=True)
class SharedColumns:
    """Columns (batch, dim, points) in two parts, with the part of a tensor's interface that residuals need.

    Args:
        own: (batch, d, points), the first d features.
        common: (batch, dim - d), the last features, which are the same at all points of a sample.
    """

    own: Tensor
    common: Tensor

    @property
    def shape(self) -> torch.Size:
        """(batch, dim, points)."""
        batch, dim, points = self.own.shape
        return torch.Size((batch, dim + self.common.shape[1], points))

    def numel(self) -> int:
        """The number of entries of all columns."""
        return self.shape.numel()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first part."""
        return self.own.dtype

    @property
    def device(self) -> torch.device:
        """The device of both parts."""
        return self.own.device

    def detach(self) -> SharedColumns:
        """Detach both parts from the graph."""
        return SharedColumns(self.own.detach(), self.common.detach())

    def to(self, dtype: torch.dtype) -> SharedColumns:
        """Convert both parts to another dtype."""
        return SharedColumns(self.own.to(dtype), self.common.to(dtype))

    def dense(self) -> Tensor:
        """The columns as a dense tensor, (batch, dim, points)."""
        return torch.cat([self.own, self.common[..., None].expand(-1, -1, self.own.shape[2])], dim=1)

    def rows(self, chosen: Tensor) -> Tensor:
        """The chosen columns as rows (chosen, dim). Columns are counted sample by sample."""
        sample, point = torch.unravel_index(chosen, (self.own.shape[0], self.own.shape[2]))
        return torch.cat([self.own.mT[sample, point], self.common[sample]], dim=1)


Columns = Tensor | SharedColumns


def dense(x: Columns) -> Tensor:
    """The columns as one tensor."""
    return x.dense() if isinstance(x, SharedColumns) else x


def identity(x: Columns) -> tuple[Any, ...]:
    """A key that is equal for two views of the same memory, as long as both exist."""
    if isinstance(x, SharedColumns):
        return (*identity(x.own), *identity(x.common))
    if in_transform():  # a stand-in has no memory
        return (id(x),)
    return (x.data_ptr(), x.dtype, x.device, tuple(x.shape), x.stride())


def row_product(weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` for rows (..., dim), in the memory layout of x.

    Networks that compute on transposed features (dim, rows) pass rows of strides (1, rows), and the layer's output has that
    layout if the layer keeps it. `linear` would return contiguous rows, and adding these to the output, and their gradients to
    each other, would mix both layouts.
    """
    if x.dim() != 2 or x.shape[0] < 2 or x.stride() != (1, x.shape[0]):
        return torch.nn.functional.linear(x, weight, bias)
    columns = weight @ x.t() if bias is None else torch.addmm(bias[:, None], weight, x.t())
    return columns.t()


def column_product(weight: Tensor, x: Columns) -> Tensor:
    """`W x` for columns: (out, dim), (..., dim, points) -> (..., out, points), contiguous, without a transpose."""
    if isinstance(x, SharedColumns):
        first = x.own.shape[1]
        shared = torch.nn.functional.linear(x.common, weight[:, first:])
        return column_product(weight[:, :first], x.own) + shared[..., None]
    if x.dim() != 3:
        return torch.matmul(weight, x)
    # torch.matmul would fold batch and points into rows, which copies x
    return torch.bmm(weight.expand(x.shape[0], -1, -1), x)
