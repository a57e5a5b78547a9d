"""Group convolutions on the square grid (Cohen and Welling, arXiv 1602.07576; steerable fields: Weiler and Cesa,
arXiv 1911.08251), exact under rotations by 90 degrees and reflections, in plain torch.

Features are (batch, channels, H, W), channels laid out as a `Representation`: a regular field is `order` neighbouring
channels, a vector field its x and y. The group acts by (g f)(p) = rho(g) f(g^-1 p), row 0 on top, y up. A network is
exactly equivariant on odd sizes, or without strides: a stride of 2 on an even size samples a grid that rotations shift.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax.symmetry import Representation, trivial
from equirelax.symmetry.kernels import check_planar, is_permutation, kernel_orbits

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class OrbitKernel:
    """The invariant kernels between two representations, with one free parameter for every orbit.

    Its index tensors are buffers of the module that uses it, so that they move with it.

    Args:
        owner: The module that gets the buffers; no reference to it is kept.
        name: Prefix of the buffers' names.
        in_rep, out_rep: representations of one of the groups C1, C2, C4, D1, D2, D4, made of trivial, sign, vector and regular
            blocks.
        size: kernel size k.

    Attributes:
        count: Number of free parameters.

    Raises:
        RepresentationError: the group does not map the grid onto itself, or a block does not permute entries up to sign.
    """

    def __init__(
        self, owner: nn.Module, name: str, in_rep: Representation, out_rep: Representation, size: int
    ) -> None:
        check_planar(in_rep.group, "a group convolution")
        self.name, self.in_rep, self.out_rep, self.size = name, in_rep, out_rep, size
        self._counts: list[int] = []
        for i, (m_out, b_out) in enumerate(out_rep.blocks):
            for j, (m_in, b_in) in enumerate(in_rep.blocks):
                orbits = kernel_orbits(b_in, b_out, size)
                owner.register_buffer(f"{name}_index_{i}_{j}", orbits.index, persistent=False)
                for part in ("sign", "sizes"):
                    value = getattr(orbits, part).to(torch.get_default_dtype())
                    owner.register_buffer(f"{name}_{part}_{i}_{j}", value, persistent=False)
                self._counts.append(m_out * m_in * len(orbits.sizes))
        self.count = sum(self._counts)

    def expand(self, owner: nn.Module, weight: Tensor) -> Tensor:
        """Build the kernel (out, in, k, k) from the free parameters (count,), differentiably."""
        parts = iter(weight.split(self._counts))
        bands = []
        for i, (m_out, b_out) in enumerate(self.out_rep.blocks):
            tiles = []
            for j, (m_in, b_in) in enumerate(self.in_rep.blocks):
                index, sign, sizes = self._buffers_of(owner, i, j)
                free = next(parts).view(m_out * m_in, len(sizes))
                # nothing can be gathered from an empty basis
                tile = (
                    free.index_select(1, index) * sign
                    if len(sizes)
                    else free.new_zeros(len(free), len(index))
                )
                tile = tile.view(m_out, m_in, b_out.dim, b_in.dim, self.size, self.size).transpose(1, 2)
                tiles.append(tile.reshape(m_out * b_out.dim, m_in * b_in.dim, self.size, self.size))
            bands.append(tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=1))
        return bands[0] if len(bands) == 1 else torch.cat(bands)

    def coefficients(self, owner: nn.Module, kernel: Tensor) -> Tensor:
        """Compute the free parameters (count,) of the invariant kernel nearest to `kernel` (out, in, k, k): means over orbits."""
        numbers = []
        for i, ((m_out, b_out), rows) in enumerate(
            zip(self.out_rep.blocks, self.out_rep.slices(), strict=True)
        ):
            for j, ((m_in, b_in), columns) in enumerate(
                zip(self.in_rep.blocks, self.in_rep.slices(), strict=True)
            ):
                index, sign, sizes = self._buffers_of(owner, i, j)
                tile = kernel[rows, columns].reshape(m_out, b_out.dim, m_in, b_in.dim, -1).transpose(1, 2)
                tile = tile.reshape(m_out * m_in, -1) * sign.to(kernel)
                if len(sizes):
                    sums = tile.new_zeros(m_out * m_in, len(sizes)).index_add(1, index, tile)
                    numbers.append((sums / sizes.to(kernel)).flatten())
        return torch.cat(numbers) if numbers else kernel.new_zeros(0)

    def _buffers_of(self, owner: nn.Module, i: int, j: int) -> tuple[Tensor, Tensor, Tensor]:
        index, sign, sizes = (
            getattr(owner, f"{self.name}_{part}_{i}_{j}") for part in ("index", "sign", "sizes")
        )
        return index, sign, sizes


class GroupConv2d(nn.Module):
    """An equivariant convolution between two feature fields on the square grid.

    Args:
        in_rep, out_rep: representations of C1, C2, C4, D1, D2 or D4, made of trivial, sign, vector and regular blocks.
        kernel_size: k >= 1.
        stride: >= 1; if above 1, exact only where the samples are placed symmetrically (odd sizes).
        padding: pixels on every side; None keeps the size for stride 1, and needs an odd kernel.
        bias: add the constants that are invariant under the group (one number for a trivial or regular field, none for a
            sign or vector).
        padding_mode: "zeros", "reflect", "replicate" or "circular".

    Attributes:
        weight: (orbits,), the free parameters; initialised within 1/sqrt(in k k), like `torch.nn.Conv2d`.
        bias: (invariants of out_rep,), or None if there is none or `bias` is False.
        in_channels, out_channels: dim of in_rep and out_rep.

    Raises:
        RepresentationError: a group, block or size is not supported.
    """

    def __init__(
        self,
        in_rep: Representation,
        out_rep: Representation,
        kernel_size: int,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        _check(in_rep, out_rep, kernel_size, stride, padding, padding_mode)
        self.in_rep, self.out_rep = in_rep, out_rep
        self.in_channels, self.out_channels = in_rep.dim, out_rep.dim
        self.kernel_size, self.stride = kernel_size, stride
        self.padding = kernel_size // 2 if padding is None else padding
        self.padding_mode = padding_mode
        self._kernels = OrbitKernel(self, "_kernel", in_rep, out_rep, kernel_size)
        self._constants = OrbitKernel(self, "_constant", trivial(in_rep.group), out_rep, 1)
        self.weight = nn.Parameter(torch.empty(self._kernels.count))
        has_bias = bias and self._constants.count > 0
        self.bias = nn.Parameter(torch.empty(self._constants.count)) if has_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly within 1/sqrt(in k k)."""
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size**2)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def kernel(self) -> Tensor:
        """Build the effective kernel, (out, in, k, k), differentiable in `weight`."""
        return self._kernels.expand(self, self.weight)

    def constants(self) -> Tensor | None:
        """Build the bias of every channel, (out,); None without one."""
        return None if self.bias is None else self._constants.expand(self, self.bias).flatten()

    def coefficients(self, kernel: Tensor) -> Tensor:
        """Compute the `weight` (orbits,) of the equivariant kernel nearest to `kernel` (out, in, k, k)."""
        return self._kernels.coefficients(self, kernel)

    def constant_coefficients(self, constants: Tensor) -> Tensor:
        """Compute the `bias` of the equivariant constants nearest to `constants` (out,)."""
        return self._constants.coefficients(self, constants[:, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, H, W) -> (batch, out, H', W').

        Raises:
            RepresentationError: the number of channels or axes is wrong.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise RepresentationError(
                f"GroupConv2d: expected (batch, {self.in_channels}, H, W) for {self.in_rep!r}, got {tuple(x.shape)}"
            )
        padding = self.padding
        if self.padding_mode != "zeros" and padding:
            x = nn.functional.pad(x, (padding,) * 4, mode=self.padding_mode)
            padding = 0
        return nn.functional.conv2d(x, self.kernel(), self.constants(), self.stride, padding)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return (
            f"{self.in_rep!r}, {self.out_rep!r}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, padding_mode={self.padding_mode!r}, bias={self.bias is not None}"
        )


def _check(
    in_rep: Representation,
    out_rep: Representation,
    kernel_size: int,
    stride: int,
    padding: int | None,
    padding_mode: str,
) -> None:
    """Check the arguments of a convolution.

    Raises:
        RepresentationError: an argument is invalid; the message names it and says what was expected.
    """
    for name, rep in (("in_rep", in_rep), ("out_rep", out_rep)):
        if not isinstance(rep, Representation):
            raise RepresentationError(
                f"GroupConv2d: {name} is a {type(rep).__name__}; expected a Representation, as in 8 * regular(Cyclic(4))"
            )
    if in_rep.group != out_rep.group:
        raise RepresentationError(
            f"GroupConv2d: in_rep is of {in_rep.group.name}, out_rep of {out_rep.group.name}; expected one group"
        )
    if not in_rep.dim or not out_rep.dim:
        raise RepresentationError(
            f"GroupConv2d: {in_rep!r} -> {out_rep!r} has no channels; expected at least one"
        )
    sizes = (kernel_size, stride, 0 if padding is None else padding)
    if any(type(size) is not int for size in sizes) or kernel_size < 1 or stride < 1 or sizes[2] < 0:
        raise RepresentationError(
            f"GroupConv2d: kernel_size and stride must be whole numbers of at least 1 and padding one of at least 0, the "
            f"same for both axes, got {kernel_size!r}, {stride!r}, {padding!r}"
        )
    if padding is None and kernel_size % 2 == 0:
        raise RepresentationError(
            f"GroupConv2d: a kernel of even size {kernel_size} cannot keep the size symmetrically; give padding=, or "
            "an odd kernel_size"
        )
    if padding_mode not in PADDING_MODES:
        raise RepresentationError(
            f"GroupConv2d: padding_mode is {padding_mode!r}; expected one of {', '.join(PADDING_MODES)}"
        )


def _check_fields(rep: Representation, what: str) -> None:
    """Check that no entry of the fields changes sign.

    Raises:
        RepresentationError: entries change sign; the message names the representation.
    """
    check_planar(rep.group, what)
    if not rep.dim or not is_permutation(rep):
        raise RepresentationError(
            f"{what} takes trivial and regular fields, whose entries the group only moves; got {rep!r}"
        )


class FieldBatchNorm(nn.Module):
    """Batch norm with one mean, variance, scale and shift for every field, shared by its components.

    Args:
        rep: trivial and regular fields.

    Raises:
        RepresentationError: entries of the fields change sign, so that a shift is not equivariant.
    """

    def __init__(self, rep: Representation, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        _check_fields(rep, "FieldBatchNorm")
        self.rep = rep
        # (batch, fields, components, H, W): BatchNorm3d averages over all axes except the fields
        self.norms = nn.ModuleList(nn.BatchNorm3d(m, eps, momentum) for m, _ in rep.blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, H, W) -> the same shape."""
        parts = []
        for (m, block), where, norm in zip(self.rep.blocks, self.rep.slices(), self.norms, strict=True):
            part = x[:, where].reshape(x.shape[0], m, block.dim, *x.shape[2:])
            parts.append(norm(part).flatten(1, 2))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class GroupPool(nn.Module):
    """The largest component of every field: regular fields become invariant ones.

    Args:
        rep: trivial and regular fields.

    Attributes:
        in_rep: `rep`.
        out_rep: one trivial field for every field of `rep`.

    Raises:
        RepresentationError: entries of the fields change sign.
    """

    def __init__(self, rep: Representation) -> None:
        super().__init__()
        _check_fields(rep, "GroupPool")
        self.in_rep = rep
        self.out_rep = trivial(rep.group, sum(m for m, _ in rep.blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, H, W) -> (batch, fields, H, W)."""
        parts = [
            x[:, where].reshape(x.shape[0], m, block.dim, *x.shape[2:]).amax(dim=2)
            for (m, block), where in zip(self.in_rep.blocks, self.in_rep.slices(), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
