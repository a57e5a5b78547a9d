"""Scale-equivariant steerable convolutions on a ladder of scales, strict and relaxed.

Sosnovik, Szmaja, Smeulders: "Scale-equivariant steerable networks", ICLR 2020 (arXiv 1910.11093), section 4: kernels are sums
of Hermite-Gauss functions psi_b(x / s) / s^2, one set of weights for all scales s of the ladder. When the input is scaled by
the ladder's ratio, the features move one rung up. This is as exact as a pixel grid allows: kernels are sampled and cut off at
their edge, and the ladder ends. Only the grid is scaled; values and times stay as they are.

Features are (batch, scales * channels, H, W), with the scale's index first.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equirelax.errors import RepresentationError
from equirelax_lab.models.exact import Exact
from equirelax_lab.models.plane_blocks import check_numbers

SCALES = (1.0, 1.26, 1.59)
"""A third of an octave from rung to rung."""


class ScaleConv2d(nn.Module):
    """Convolution between features on a ladder of scales; every rung is convolved with the kernel of its scale.

    Args:
        in_channels, out_channels: numbers of channels on one rung.
        scales: scales of the ladder, increasing, above 0.
        kernel_size: odd.
        lifts: whether the input is a plain picture (batch, in_channels, H, W), the same for all rungs.
        pools: whether the output is a plain picture: the mean over the rungs.
        orders: Hermite polynomials of order 0 ... orders - 1 in x and in y.
        width: width of the Gaussian at scale 1, in pixels. None makes the widest one fit 4 times between centre and edge, but
            the narrowest at least 0.6 pixels wide, so that sampling resolves it.
        bias: one number per channel, the same on all rungs.
        relaxed: weights may vary over the positions of the kernel (Wang, Walters, Yu, arXiv 2201.11969, section 4.3: w_b(y)
            psi_b(y)); they are equal at the start, so that the layer starts as the strict one.

    Attributes:
        weight: (out_channels, in_channels, orders^2); relaxed (..., orders^2, kernel_size^2).
        symmetry: "scale".

    Raises:
        RepresentationError: a size is out of its range.
    """

    symmetry = "scale"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scales: tuple[float, ...] = SCALES,
        kernel_size: int = 5,
        *,
        lifts: bool = False,
        pools: bool = False,
        orders: int = 3,
        width: float | None = None,
        bias: bool = True,
        relaxed: bool = False,
    ) -> None:
        super().__init__()
        check_numbers(
            "ScaleConv2d",
            odd=("kernel_size",),
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            orders=orders,
        )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.scales = check_scales(scales)
        self.kernel_size, self.padding = kernel_size, kernel_size // 2
        self.lifts, self.pools, self.relaxed = lifts, pools, relaxed
        if width is None:
            width = max(kernel_size / (8 * self.scales[-1]), 0.6 / self.scales[0])
        self._basis = Exact(hermite_gauss(kernel_size, self.scales, orders, width))
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels, orders**2, *[kernel_size**2] * relaxed)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights uniformly with the variance 1 / (in_channels * orders^2), since the basis has norm 1; the bias is 0."""
        bound = math.sqrt(3 / (self.in_channels * self.weight.shape[2]))
        with torch.no_grad():
            drawn = torch.empty(self.weight.shape[:3], dtype=self.weight.dtype, device=self.weight.device)
            drawn.uniform_(-bound, bound)
            self.weight.copy_(drawn.unsqueeze(-1) if self.relaxed else drawn)
            if self.bias is not None:
                self.bias.zero_()

    @property
    def basis(self) -> Tensor:
        """Compute the kernels of all functions at all scales, (orders^2, scales, kernel_size^2), float64."""
        return self._basis.value

    @property
    def rows(self) -> Tensor:
        """List the channels of every output field in the order of the ladder, (out_channels, rungs), long; one if it pools."""
        return _ladder(self.out_channels, 1 if self.pools else len(self.scales))

    @property
    def columns(self) -> Tensor:
        """List the channels of every input field, (in_channels, rungs), long; one if it lifts."""
        return _ladder(self.in_channels, 1 if self.lifts else len(self.scales))

    @property
    def span(self) -> Tensor:
        """Compute a spanning set of the strict kernels between two fields: (orders^2, rungs out, rungs in, k, k)."""
        basis = self.basis.unflatten(-1, (self.kernel_size, self.kernel_size))
        if self.lifts and self.pools:
            return basis.mean(1)[:, None, None]
        if self.lifts:
            return basis.unsqueeze(2)
        if self.pools:
            return basis.unsqueeze(1) / len(self.scales)
        return torch.diag_embed(basis.movedim(1, -1)).movedim((-2, -1), (1, 2))

    def coefficients(self, kernel: Tensor) -> Tensor:
        """Compute the `weight` of the strict kernel nearest to `kernel` (channels out, channels in, k, k)."""
        span = self.span.to(kernel).flatten(1)
        rows, columns = self.rows.to(kernel.device), self.columns.to(kernel.device)
        tiles = kernel[rows[:, None, :, None], columns[None, :, None, :]].flatten(2)
        numbers = tiles @ torch.linalg.pinv(span)
        return numbers.unsqueeze(-1).expand_as(self.weight) if self.relaxed else numbers

    def constant_coefficients(self, constants: Tensor) -> Tensor:
        """Compute the `bias` of the strict constants nearest to `constants` (channels out,): means over the rungs."""
        return constants[self.rows.to(constants.device)].mean(1)

    def rungs(self) -> Tensor:
        """Compute the kernels of all scales: (scales, out_channels, in_channels, kernel_size, kernel_size)."""
        basis = self._basis.like(self.weight)
        if self.relaxed:
            kernels = torch.einsum("oibk,bsk->soik", self.weight, basis)
        else:
            kernels = torch.einsum("oib,bsk->soik", self.weight, basis)
        return kernels.unflatten(-1, (self.kernel_size, self.kernel_size))

    def kernel(self) -> Tensor:
        """Build the kernel of the same map as a plain convolution: (channels out, channels in, k, k), 0 between two rungs.

        Dense convolutions that replace this layer are compared with the span of this kernel over all weights.
        """
        rungs = self.rungs()
        if self.lifts and self.pools:
            return rungs.mean(0)
        if self.lifts:
            return rungs.flatten(0, 1)
        if self.pools:
            return rungs.transpose(0, 1).flatten(1, 2) / len(self.scales)
        n, out, into = rungs.shape[:3]
        whole = rungs.new_zeros(n, out, n, into, *rungs.shape[3:])
        index = torch.arange(n, device=rungs.device)
        whole[index, :, index] = rungs
        return whole.flatten(2, 3).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, [scales *] in_channels, H, W) -> (batch, [scales *] out_channels, H, W).

        Raises:
            RepresentationError: the number of channels is wrong.
        """
        n = len(self.scales)
        channels = self.in_channels * (1 if self.lifts else n)
        if x.dim() != 4 or x.shape[1] != channels:
            raise RepresentationError(
                f"ScaleConv2d: expected (batch, {channels}, H, W): {self.in_channels} channels"
                f"{'' if self.lifts else f' on each of {n} rungs'}; got {tuple(x.shape)}"
            )
        if self.lifts or self.pools:
            bias = self.bias if self.bias is None or self.pools else self.bias.repeat(n)
            return F.conv2d(x, self.kernel(), bias, padding=self.padding)
        bias = None if self.bias is None else self.bias.repeat(n)
        return F.conv2d(x, self.rungs().flatten(0, 1), bias, padding=self.padding, groups=n)

    def deviation(self) -> Tensor:
        """Compute the mean distance of relaxed weights from their mean over positions: a number, 0 for a strict layer."""
        if not self.relaxed:
            return self.weight.new_zeros(())
        return (self.weight - self.weight.mean(-1, keepdim=True)).abs().mean()

    @torch.no_grad()
    def symmetrise(self) -> None:
        """Replace relaxed weights by their mean over the kernel's positions."""
        if self.relaxed:
            self.weight.copy_(self.weight.mean(-1, keepdim=True).expand_as(self.weight))

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return (
            f"{self.in_channels}, {self.out_channels}, scales={self.scales}, kernel_size={self.kernel_size}, "
            f"lifts={self.lifts}, pools={self.pools}, relaxed={self.relaxed}"
        )


def _ladder(channels: int, rungs: int) -> Tensor:
    """List the channels of every field's rungs: (channels, rungs), long."""
    return torch.arange(rungs * channels).view(rungs, channels).T


class ScaleBatchNorm(nn.Module):
    """Batch norm of channels whose mean and variance are shared by all rungs, so that it commutes with moving one rung up.

    Args:
        channels: number of channels on one rung.
        rungs: number of rungs of the ladder.
    """

    def __init__(self, channels: int, rungs: int) -> None:
        super().__init__()
        self.rungs = rungs
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, rungs * channels, H, W) -> the same shape."""
        y: Tensor = self.norm(x.unflatten(1, (self.rungs, -1)).flatten(0, 1))
        return y.unflatten(0, (-1, self.rungs)).flatten(1, 2)


def hermite_gauss(size: int, scales: tuple[float, ...], orders: int, width: float) -> Tensor:
    """He_m(y / s) He_n(x / s) exp(-(x^2 + y^2) / (2 s^2)) / s^2 at the pixels, row 0 the largest y, s = width times a scale.

    Every function has norm 1 at the smallest scale.

    Args:
        size: size of the kernel, in pixels.
        scales: scales of the ladder.
        orders: orders of the polynomials, in y and in x.
        width: width of the Gaussian at scale 1, in pixels.

    Returns:
        (orders^2, scales, size^2), float64; n varies fastest.

    Raises:
        RepresentationError: the width is not above 0.
    """
    if not 0 < width < math.inf:
        raise RepresentationError(f"ScaleConv2d: width is {width}; expected a number of pixels above 0")
    widths = width * torch.tensor(scales, dtype=torch.float64)[:, None]  # (scales, 1)
    x = torch.arange(size, dtype=torch.float64) - size // 2
    u = x / widths
    line = [torch.ones_like(u), u]
    for n in range(2, orders):
        line.append(u * line[-1] - (n - 1) * line[-2])
    h = torch.stack(line[:orders]) * torch.exp(-u.square() / 2) / widths  # (orders, scales, size)
    basis = torch.einsum("msi,nsj->mnsij", h.flip(-1), h).flatten(3).flatten(0, 1)
    return basis / basis[:, :1].norm(dim=-1, keepdim=True)


def check_scales(scales: tuple[float, ...]) -> tuple[float, ...]:
    """Check a ladder and return it as a tuple.

    Raises:
        RepresentationError: there is no scale, one is not above 0, or they do not increase.
    """
    ladder = tuple(float(s) for s in scales)
    rising = all(a < b for a, b in itertools.pairwise(ladder))
    if not ladder or not rising or not all(0 < s < math.inf for s in ladder):
        raise RepresentationError(f"A ladder of scales rises from above 0, as in {SCALES}; got {scales!r}")
    return ladder
