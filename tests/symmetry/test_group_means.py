"""The orthogonal projection onto equivariant maps is the mean of rho_out(g) W rho_in(g)^-1 over the group."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from equirelax.relaxation import GridKernels
from equirelax.symmetry import (
    SE,
    SO,
    Cyclic,
    Dihedral,
    E,
    Group,
    Lorentz,
    O,
    Representation,
    Scaling,
    Symmetric,
    equivariant_projection,
    from_irreps,
    positions,
    regular,
    sign,
    trivial,
    vector,
)
from equirelax.symmetry.kernels import offset_permutation


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def turns(degree: int) -> tuple[Tensor, Tensor]:
    """Rotations of space and weights that integrate products of representations exactly up to this degree in all."""
    count = degree + 1
    cosines, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    angles = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    first, second = about_z(angles), about_y(torch.from_numpy(np.arccos(cosines)))
    found = first[:, None, None] @ second[:, None] @ first[None, None]
    each = torch.from_numpy(weights / 2)[None, :, None].expand(count, -1, count) / count**2
    return found.reshape(-1, 3, 3), each.reshape(-1)


def about_z(angle: Tensor) -> Tensor:
    zero, one, c, s = torch.zeros_like(angle), torch.ones_like(angle), angle.cos(), angle.sin()
    return torch.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).reshape(-1, 3, 3)


def about_y(angle: Tensor) -> Tensor:
    order = torch.tensor([2, 0, 1])
    return about_z(angle)[:, order][:, :, order]


def mean(weight: Tensor, in_rep: Representation, out_rep: Representation, group: Group) -> Tensor:
    if group.order is not None:
        elements = group.elements()
        share = torch.full((len(elements),), 1 / len(elements), dtype=torch.float64)
    else:
        elements, share = turns(4)
        if isinstance(group, O):
            elements, share = torch.cat([elements, -elements]), torch.cat([share, share]) / 2
    moved = out_rep.matrix(elements) @ weight @ in_rep.matrix(elements).mT
    return torch.einsum("g,g...->...", share, moved)


O3_IN, O3_OUT = from_irreps("2x0e+2x1o+1x2e"), from_irreps("1x0e+1x0o+2x1o+1x1e+1x2e")
C4, D4, S3 = Cyclic(4), Dihedral(4), Symmetric(3)
PAIRS = {
    "O(3)": (O3_IN, O3_OUT),
    "SO(3)": (trivial(SO(3), 2) + 3 * vector(SO(3)), vector(SO(3)) + trivial(SO(3)) + vector(SO(3))),
    "C4": (2 * regular(C4) + vector(C4), trivial(C4) + vector(C4) + regular(C4)),
    "D4": (regular(D4) + sign(D4), vector(D4) + regular(D4)),
    "S3": (vector(S3) + trivial(S3), regular(S3) + sign(S3)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_projected_map_is_the_mean_over_the_group(name: str) -> None:
    in_rep, out_rep = PAIRS[name]
    weights = randn(2, out_rep.dim, in_rep.dim)
    projected = equivariant_projection(weights, in_rep, out_rep)
    torch.testing.assert_close(projected[0], equivariant_projection(weights[0], in_rep, out_rep))
    for weight, found in zip(weights, projected, strict=True):
        torch.testing.assert_close(found, mean(weight, in_rep, out_rep, in_rep.group), rtol=0, atol=1e-10)
    assert float((weights - projected).norm()) > 0.1 * float(weights.norm())


@pytest.mark.parametrize("group", [C4, D4], ids=["C4", "D4"])
def test_a_projected_kernel_is_the_mean_over_the_group(group: Group) -> None:
    in_rep, out_rep = vector(group) + trivial(group), regular(group) + vector(group)
    weight = randn(out_rep.dim, in_rep.dim, 3, 3)
    total = torch.zeros_like(weight)
    for g in group.elements():
        moved = torch.einsum("oa,abp,ib->oip", out_rep.matrix(g), weight.flatten(2), in_rep.matrix(g))
        there = torch.empty_like(moved)
        there[..., offset_permutation(g, 3)] = moved
        total += there.view(weight.shape)
    torch.testing.assert_close(GridKernels(in_rep, out_rep, 3).project(weight), total / len(group.elements()))


def test_what_keeps_lengths_is_orthogonal() -> None:
    for rep in (O3_IN, O3_OUT, regular(S3), vector(E(3)) + trivial(E(3)), sign(D4)):
        assert rep.orthogonal
    for rep in (vector(Scaling()), vector(Lorentz()), positions(SE(3)), trivial(E(3)) + positions(E(3))):
        assert not rep.orthogonal
