"""The unconstrained map of a relaxed convolution: dense, of low rank, or (the control) dense but kept equivariant."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equirelax.relaxation.columns import Columns, dense
from equirelax.relaxation.kernels import Convolution
from equirelax.relaxation.linear_map import LinearMap


class ConvMap(LinearMap):
    """A dense convolution, applied as the relaxed layer's.

    Args:
        in_dim, out_dim: channels.
        convolution: kernel size, stride, padding and so on; `weight` has the shape `convolution.weight_shape` gives.
        bias: add a bias of shape (out_dim,).
    """

    def __init__(self, in_dim: int, out_dim: int, convolution: Convolution, bias: bool = False) -> None:
        super().__init__()
        self.convolution = convolution
        self.feature_axis = -1 - len(convolution.kernel_size)
        self.weight = nn.Parameter(torch.empty(convolution.weight_shape(in_dim, out_dim)))
        self.bias = nn.Parameter(torch.zeros(out_dim)) if bias else None

    def effective_weight(self) -> Tensor:
        """The kernel that is applied, (out_dim, in_dim, k, k)."""
        return self.weight

    def effective_bias(self) -> Tensor | None:
        """The bias that is added, of shape (out_dim,), or None."""
        return self.bias

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * (W * x + b)`; the scale goes into W, which is smaller than the output."""
        weight, bias = self.effective_weight(), self.effective_bias()
        if scale is not None:
            weight = scale * weight
            bias = None if bias is None else scale * bias
        return self.convolution(dense(x), weight, bias)


class EquivariantConvMap(ConvMap):
    """A dense convolution whose kernel is projected onto the equivariant ones in every forward: the control."""

    def effective_weight(self) -> Tensor:
        """The orthogonal projection of `weight`."""
        return self.convolution.symmetry.project(self.weight)


class LowRankConvMap(LinearMap):
    """A convolution to r channels, then a mixing of these at every pixel: the kernel U V is never formed to apply it.

    Args:
        in_dim, out_dim: channels.
        rank: r; `up` is U, of shape (out_dim, r), and `down` is V, of shape (r, in_dim, k, k).
        convolution: as for `ConvMap`; not transposed.
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, convolution: Convolution) -> None:
        super().__init__()
        self.convolution = convolution
        self.feature_axis = -1 - len(convolution.kernel_size)
        self.up = nn.Parameter(torch.empty(out_dim, rank))
        self.down = nn.Parameter(torch.empty(rank, in_dim, *convolution.kernel_size))

    def effective_weight(self) -> Tensor:
        """U V, (out_dim, in_dim, k, k)."""
        return torch.tensordot(self.up, self.down, dims=1)

    def effective_bias(self) -> None:
        """None."""
        return None

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * U (V * x)`; the scale goes into U."""
        up = self.up if scale is None else scale * self.up
        thin = self.convolution(dense(x), self.down)
        return torch.matmul(up, thin.flatten(self.feature_axis + 1)).unflatten(
            -1, thin.shape[self.feature_axis + 1 :]
        )
