"""A representation on another axis than the last."""

from __future__ import annotations

import dataclasses

from equirelax.symmetry.representation import Representation


@dataclasses.dataclass(frozen=True)
class Axis:
    """A representation that acts along another axis than the last.

    ``Axis(vector(SO(3)), -2)`` says that a tensor of shape (..., 3, n) holds vectors along its second axis
    from the end; ``Axis(vector(Symmetric(5)), 0)`` that the rows of a tensor of shape (5, ...) are permuted.
    """

    representation: Representation
    axis: int = -1
