"""Which matrices a network's parameters hold, for optimisers that treat matrices as such (Muon).

A plain layer's weight is a matrix; e3nn's linear maps and tensor products keep one matrix for every path, and for every
channel of the second input, in one flat vector, which their layer families know how to read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Matrices(NamedTuple):
    """Matrices of one size within a parameter.

    Attributes:
        start: First entry, in the parameter's flat order.
        shape: Sizes of the entries from there on.
        order: Permutation of `shape`'s axes that puts rows and columns last; all axes before them count matrices.
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
        """Rows and columns of each."""
        return self.shape[self.order[-2]], self.shape[self.order[-1]]

    def view(self, flat: Tensor) -> Tensor:
        """The matrices (..., rows, columns) as a view of the flat parameter, or of anything of its size."""
        return flat[self.start : self.stop].view(self.shape).permute(self.order)


def by_shape(parameter: Tensor) -> tuple[Matrices, ...]:
    """What a parameter's shape says: (rows, columns) is a matrix; of more axes, as in a convolution's kernel, all but
    the first are columns; anything with one row or column alone is a vector, and no matrix.
    """
    if parameter.dim() < 2 or not parameter.numel():
        return ()
    rows = parameter.shape[0]
    return without_vectors([Matrices(0, (rows, parameter.numel() // rows), (0, 1))])


def without_vectors(matrices: Sequence[Matrices]) -> tuple[Matrices, ...]:
    """Those with two rows and two columns at least."""
    return tuple(each for each in matrices if min(each.size) > 1)
