"""Relaxed steerable convolution on the square grid: weights that may vary over the positions of the kernel.

Wang, Walters, Yu: "Approximately equivariant networks for imperfectly symmetric dynamics", ICML 2022 (arXiv 2201.11969),
section 4.3: K(y) = sum_b w_b(y) B_b(y), a steerable kernel when no w_b depends on y. The paper's B_b are harmonics on rings. Here
they are the orbits of the kernel's entries, which span all equivariant kernels of the grid, so w_b(y) is one number for every
orbit and position. Entries of an orbit that share a position, such as the centre, stay tied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equirelax.symmetry import Representation
from equirelax_lab.models.group_conv import GroupConv2d, OrbitKernel


class OffsetKernel(OrbitKernel):
    """Kernels with one free parameter for every orbit and every position of the kernel that the orbit visits.

    Args:
        owner, name, in_rep, out_rep, size: as for `OrbitKernel`.
    """

    def __init__(
        self, owner: nn.Module, name: str, in_rep: Representation, out_rep: Representation, size: int
    ) -> None:
        super().__init__(owner, name, in_rep, out_rep, size)
        places = size * size
        self._counts = []
        for i, (m_out, _) in enumerate(out_rep.blocks):
            for j, (m_in, _) in enumerate(in_rep.blocks):
                index, sign, sizes = self._buffers_of(owner, i, j)
                place = torch.arange(len(index), device=index.device) % places
                kept = sign != 0
                numbers, refined = torch.unique(index[kept] * places + place[kept], return_inverse=True)
                split = torch.zeros_like(index)
                split[kept] = refined
                setattr(owner, f"{name}_index_{i}_{j}", split)
                counted = torch.bincount(refined, minlength=len(numbers)).to(sizes)
                setattr(owner, f"{name}_sizes_{i}_{j}", counted)
                self._counts.append(m_out * m_in * len(numbers))
        self.count = sum(self._counts)


class RelaxedGroupConv2d(GroupConv2d):
    """A `GroupConv2d` whose weights may vary over the kernel. It starts as the strict layer, with the same random numbers.

    Args:
        in_rep, out_rep, kernel_size, stride, padding, bias, padding_mode: as for `GroupConv2d`.

    Attributes:
        weight: (pairs of orbit and position,).

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
        super().__init__(in_rep, out_rep, kernel_size, stride, padding, bias, padding_mode)
        start = self.kernel().detach()
        self._strict = self._kernels
        self._kernels = OffsetKernel(self, "_varying", in_rep, out_rep, kernel_size)
        self.weight = nn.Parameter(self.coefficients(start))

    def nearest(self) -> Tensor:
        """Compute the weights of the nearest equivariant kernel, a tensor like `weight`: its mean over every orbit."""
        strict = self._strict.coefficients(self, self.kernel())
        return self.coefficients(self._strict.expand(self, strict))

    def deviation(self) -> Tensor:
        """Compute the mean distance of the weights from the nearest equivariant ones: a number, 0 if equivariant.

        The paper's regulariser takes differences of neighbouring positions instead, which for weights on orbits would compare
        positions that no symmetry connects.
        """
        return (self.weight - self.nearest()).abs().mean()

    @torch.no_grad()
    def symmetrise(self) -> None:
        """Replace the weights by the nearest equivariant ones."""
        self.weight.copy_(self.nearest())
