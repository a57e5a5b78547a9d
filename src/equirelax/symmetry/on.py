"""Actions on whole tensors: by a representation on one axis or two, or (`fields.py`) on a grid of pixels."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.group import Group
from equirelax.symmetry.reading import read_representation
from equirelax.symmetry.representation import Representation


class TensorAction(ABC):
    """The action of a group on a tensor that has more axes than its representation.

    Attributes:
        representation: the action on one feature vector.
    """

    representation: Representation

    @property
    def group(self) -> Group:
        """The group that acts."""
        return self.representation.group

    @abstractmethod
    def apply(self, g: Tensor, x: Tensor) -> Tensor:
        """Compute rho(g) x, of the shape of x, for one g (n, n) or a batch (b, n, n) along the first axis of x.

        Raises:
            RepresentationError: shapes do not fit.
        """

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """Compute d/dt of exp(t A_i) acting on x, at t = 0, for the basis A_1..A_k of the Lie algebra: (k, *x.shape)."""

    @abstractmethod
    def mismatch(self, shape: Sequence[int]) -> str:
        """Describe what is wrong with a tensor of this shape, and what to do; empty if the shape fits."""

    @abstractmethod
    def moves(self, axis: int, dims: int) -> bool:
        """Whether the group moves entries along `axis` (0 and more) of a tensor with `dims` axes."""

    @property
    def invariant(self) -> bool:
        """Whether every element leaves every tensor unchanged."""
        return self.representation.invariant

    @property
    def where(self) -> str:
        """A phrase for messages that says where it acts, with a leading space; empty for the last axis."""
        return ""


@dataclasses.dataclass(frozen=True)
class On(TensorAction):
    """A representation that acts along an axis other than the last, or along each of two axes.

    ``On(vector(SO(3)), -2)`` means that a tensor of shape (..., 3, n) holds vectors along its second axis
    from the end. ``On(vector(Symmetric(5)), 0)`` means that the rows of a tensor of shape (5, ...) are permuted, and
    ``On(vector(SO(3)), (-2, -1))`` that each of its 3 x 3 matrices M goes to R M R^T. The
    representation may also be irreps of O(3) as text, e3nn's ``Irreps`` or an escnn ``FieldType``: ``On("4x1o", -2)``.

    Attributes:
        representation: the representation on each axis.
        axis: one axis, or two different ones.

    Raises:
        RepresentationError: the axes are not one or two different integers, or positions are on two axes.
    """

    representation: Representation
    axis: int | tuple[int, int] = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "representation", read_representation(self.representation))
        if isinstance(self.axis, list):
            object.__setattr__(self, "axis", tuple(self.axis))
        whole = all(isinstance(a, int) and not isinstance(a, bool) for a in self.axes)
        if not whole or len(self.axes) not in (1, 2) or len(set(self.axes)) != len(self.axes):
            raise RepresentationError(
                f"On: axis is {self.axis!r}; expected a whole number, or two different ones"
            )
        if len(self.axes) == 2 and not self.representation.linear:
            raise RepresentationError(
                f"On: {self.representation!r} holds positions, which no tensor on two axes is made of"
            )

    @property
    def axes(self) -> tuple[int, ...]:
        """The one or two axes as a tuple."""
        return tuple(self.axis) if isinstance(self.axis, tuple) else (self.axis,)

    @property
    def full(self) -> Representation:
        """The action on the flattened axes, in their order: the representation, or its tensor product with itself."""
        return self.representation if len(self.axes) == 1 else self.representation.tensor(self.representation)

    def apply(self, g: Tensor, x: Tensor) -> Tensor:
        for axis in self.axes:
            x = self.representation.apply(g, x, axis=axis)
        return x

    def derivative(self, x: Tensor) -> Tensor:
        first, *others = (self.representation.derivative(x, axis=axis) for axis in self.axes)
        return sum(others, first)

    def mismatch(self, shape: Sequence[int]) -> str:
        dims, size = len(shape), self.representation.dim
        fits = all(-dims <= axis < dims and shape[axis] == size for axis in self.axes)
        if fits and len({axis % dims for axis in self.axes}) == len(self.axes):
            return ""
        axes = f"axis {self.axis}" if len(self.axes) == 1 else f"the axes {self.axis}"
        return (
            f"{self.representation!r} needs {axes} to have size {size}: check the representation, or name another axis with "
            "On(representation, axis), on the command line with @AXIS"
        )

    def moves(self, axis: int, dims: int) -> bool:
        return axis in {own % dims for own in self.axes}

    @property
    def where(self) -> str:
        if len(self.axes) == 2:
            return f" along the axes {self.axes[0]} and {self.axes[1]}"
        return "" if self.axis == -1 else f" along axis {self.axis}"
