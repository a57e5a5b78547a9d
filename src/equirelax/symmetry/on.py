"""How a whole tensor transforms: a representation on one of its axes, or (``fields.py``) on a grid of pixels."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from equirelax.symmetry.group import Group
from equirelax.symmetry.reading import read_representation
from equirelax.symmetry.representation import Representation


class TensorAction(ABC):
    """What a `Representation` does to a tensor with more axes than its own.

    Attributes:
        representation: what acts on one feature vector.
    """

    representation: Representation

    @property
    def group(self) -> Group:
        """The group that acts."""
        return self.representation.group

    @abstractmethod
    def apply(self, g: Tensor, x: Tensor) -> Tensor:
        """rho(g) x, like x: for one g (n, n), or a batch (b, n, n) along the first axis of x.

        Raises:
            RepresentationError: shapes do not fit.
        """

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """d/dt of exp(t A_i) acting on x, at t = 0, for the basis A_1..A_k of the Lie algebra: (k, *x.shape)."""

    @abstractmethod
    def mismatch(self, shape: Sequence[int]) -> str:
        """What is wrong with a tensor of this shape, in words, and what to do; empty where it fits."""

    @abstractmethod
    def moves(self, axis: int, dims: int) -> bool:
        """Whether the group moves entries along `axis` (0 and more) of a tensor with `dims` axes."""

    @property
    def invariant(self) -> bool:
        """Whether no element changes any tensor."""
        return self.representation.invariant

    @property
    def where(self) -> str:
        """Where in the tensor, for people: a phrase with a blank before it, or nothing for the last axis."""
        return ""


@dataclasses.dataclass(frozen=True)
class On(TensorAction):
    """A representation that acts along another axis than the last.

    ``On(vector(SO(3)), -2)`` says that a tensor of shape (..., 3, n) holds vectors along its second axis
    from the end; ``On(vector(Symmetric(5)), 0)`` that the rows of a tensor of shape (5, ...) are permuted. The
    representation may also be irreps of O(3) as text, e3nn's ``Irreps`` or an escnn ``FieldType``: ``On("4x1o", -2)``.
    """

    representation: Representation
    axis: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "representation", read_representation(self.representation))

    def apply(self, g: Tensor, x: Tensor) -> Tensor:
        return self.representation.apply(g, x, axis=self.axis)

    def derivative(self, x: Tensor) -> Tensor:
        return self.representation.derivative(x, axis=self.axis)

    def mismatch(self, shape: Sequence[int]) -> str:
        if -len(shape) <= self.axis < len(shape) and shape[self.axis] == self.representation.dim:
            return ""
        return (
            f"{self.representation!r} needs axis {self.axis} to have size {self.representation.dim}: check the "
            "representation, or name another axis with On(representation, axis)"
        )

    def moves(self, axis: int, dims: int) -> bool:
        return axis == self.axis % dims

    @property
    def where(self) -> str:
        return "" if self.axis == -1 else f" along axis {self.axis}"
