"""What a residual's map is that one weight (and bias) describes."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from equirelax.relaxation.columns import Columns
from equirelax.relaxation.matrices import Matrices


class LinearMap(nn.Module, ABC):
    """A map that one matrix (and bias) describes, however it is kept: it has penalties in weight space, and folds.

    Attributes:
        feature_axis: -1 for x of shape (..., in_dim), -2 for (..., in_dim, points); of a convolution that of the
            channels, -3 for (..., in_dim, H, W).
    """

    feature_axis: int

    @abstractmethod
    def effective_weight(self) -> Tensor:
        """The matrix that is applied, of shape (out_dim, in_dim), or the dense kernel of a convolution;
        differentiable in the parameters.
        """

    @abstractmethod
    def effective_bias(self) -> Tensor | None:
        """The bias that is added, of shape (out_dim,), or None."""

    def matrices(self) -> dict[str, tuple[Matrices, ...]]:
        """Which matrices the parameters hold, by name, where their shapes do not say it."""
        return {}

    @abstractmethod
    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * (W x + b)`."""
