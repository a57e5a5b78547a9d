"""Residual maps of relaxed convolutions: how their kernel is applied, and their common part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError
from equirelax.relaxation.kernels import KernelSymmetry
from equirelax.relaxation.kinds.kind import (
    LinearMap,
    Penalised,
    Rule,
    Slope,
    Terms,
    spectral_norm,
    with_biases,
)
from equirelax.symmetry import Representation

_CONV = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
_TRANSPOSED = (
    nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d,
)


@dataclass(frozen=True)
class Convolution:
    """The way in which a residual's kernel is applied, which is that of the relaxed layer.

    Args:
        kernel_size: One entry for each of the 1 to 3 spatial axes.
        symmetry: The equivariant kernels.
        stride, padding, dilation: As in torch, one entry for every axis.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        transposed: Whether it is a transposed convolution, with a kernel (in, out, k, k).
        output_padding: Output padding of a transposed convolution.

    Raises:
        PlacementError: the settings do not fit together.
    """

    kernel_size: tuple[int, ...]
    symmetry: KernelSymmetry
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        axes = len(self.kernel_size)
        settings = (self.stride, self.padding, self.dilation, self.output_padding or (0,) * axes)
        if not 1 <= axes <= 3 or any(len(setting) != axes for setting in settings):
            raise PlacementError(
                f"a convolution over 1 to 3 axes needs a kernel size, stride, padding and dilation for each, got "
                f"{self.kernel_size}, {', '.join(map(str, settings))}"
            )
        if self.transposed and self.padding_mode != "zeros":
            raise PlacementError(
                f"a transposed convolution pads with zeros, not by {self.padding_mode!r}: exclude the module"
            )

    @property
    def pixels(self) -> int:
        """Number of offsets of the kernel."""
        return torch.Size(self.kernel_size).numel()

    def weight_shape(self, in_dim: int, out_dim: int) -> tuple[int, ...]:
        """`(out, in, *kernel_size)`, or `(in, out, *kernel_size)` for a transposed convolution."""
        return (*((in_dim, out_dim) if self.transposed else (out_dim, in_dim)), *self.kernel_size)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve x (batch, in, ...) with a dense kernel: (batch, out, ...)."""
        axes = len(self.kernel_size)
        if self.transposed:
            extra = self.output_padding or (0,) * axes
            return _TRANSPOSED[axes - 1](x, weight, bias, self.stride, self.padding, extra, 1, self.dilation)
        padding = self.padding
        if self.padding_mode != "zeros" and any(padding):
            sides = [side for one in reversed(padding) for side in (one, one)]
            x, padding = nn.functional.pad(x, sides, mode=self.padding_mode), (0,) * axes
        return _CONV[axes - 1](x, weight, bias, self.stride, padding, self.dilation)


class KernelMap(LinearMap):
    """A convolution with the relaxed layer's stride, padding and so on. `effective_weight` is its dense kernel.

    Args:
        convolution: Kernel size, stride, padding and so on.
    """

    reads_inputs: ClassVar[bool] = False

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        self.convolution = convolution
        self.feature_axis = -1 - len(convolution.kernel_size)

    def penalty_rule(self, in_rep: Representation) -> Rule:
        """The rule of convolutions, whose penalties are computed from the kernel alone."""
        return kernel_sums

    def penalty_entries(self, in_rep: Representation) -> int:
        """0, since no matrices of inputs are made."""
        return 0

    def _nearest(self, weight: Tensor, in_rep: Representation, out_rep: Representation) -> Tensor:
        return self.convolution.symmetry.project(weight)

    def slope(self) -> Slope:
        """An upper bound: the sum of the largest singular values at all offsets of the kernel."""
        if self.convolution.padding_mode not in ("zeros", "circular"):
            return Slope(None, "its padding repeats pixels, which makes it steeper than its kernel")
        constant = sum(map(spectral_norm, self.effective_weight().flatten(2).unbind(-1)))
        return with_biases(constant, [self.effective_bias()])


def kernel_sums(calls: Sequence[Penalised]) -> list[Terms]:
    """The terms of residual convolutions with kernel W and bias b, differentiable twice.

        lie = convolution.symmetry.lie(W) + sum_A ||drho_out(A) b||^2 + sum_j ||rho_out(g_j) b - b||^2
        norm = ||W||^2 + ||b||^2

    They are the means of CR's terms (section 4) over the pixels of the output, for white inputs (independent entries of
    mean 0 and variance 1) and no padding.
    """
    found = []
    for call in calls:
        weight, bias = call.map.effective_weight(), call.map.effective_bias()
        lie, norm = call.map.convolution.symmetry.lie(weight), weight.square().sum()
        if bias is not None:
            column, rep = bias[:, None], call.out_rep
            lie = lie + (
                rep.left(column).square().sum() + (rep.discrete_left(column) - column).square().sum()
            )
            norm = norm + bias.square().sum()
        found.append((lie, norm))
    return found
