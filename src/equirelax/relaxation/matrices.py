"""The positions of matrices in a parameter, for optimizers that step matrices as a whole (`equirelax.optim.Muon`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Matrices(NamedTuple):
    """Matrices of one size within a parameter.

    Attributes:
        start: The first entry, in the parameter's flat order.
        shape: Sizes of the axes of the entries that begin there.
        order: Permutation of the axes of `shape` that puts rows and columns last. The axes before them enumerate matrices.
    """

    start: int
    shape: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The entry after the last one."""
        return self.start + math.prod(self.shape)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of each matrix."""
        return self.shape[self.order[-2]], self.shape[self.order[-1]]

    def view(self, flat: Tensor) -> Tensor:
        """View the matrices, (..., rows, columns), in the flat parameter or in another tensor of its size."""
        return flat[self.start : self.stop].view(self.shape).permute(self.order)


def by_shape(parameter: Tensor) -> tuple[Matrices, ...]:
    """Read the matrices from a parameter's shape.

    Two axes are rows and columns. Of more axes, as in the kernel of a convolution, the first is rows and all others are columns.
    A parameter with only one row or column is a vector and not a matrix.
    """
    if parameter.dim() < 2 or not parameter.numel():
        return ()
    rows = parameter.shape[0]
    return without_vectors([Matrices(0, (rows, parameter.numel() // rows), (0, 1))])


def without_vectors(matrices: Sequence[Matrices]) -> tuple[Matrices, ...]:
    """Leave out matrices of one row or one column."""
    return tuple(each for each in matrices if min(each.size) > 1)
