"""Groups and representations that the tests of representations share."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from equirelax.symmetry import (
    SE,
    SO,
    Cyclic,
    Dihedral,
    E,
    Group,
    Lorentz,
    MatrixGroup,
    O,
    Representation,
    Scaling,
    Symmetric,
    pseudovector,
    regular,
    sign,
    trivial,
    vector,
)

SL2 = MatrixGroup(
    [[[1.0, 0.0], [0.0, -1.0]], [[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]], name="SL(2)"
)
GROUPS: list[Group] = [
    SO(2), O(2), SO(3), O(3), SE(2), SE(3), E(3), E(1), Scaling(), Lorentz(), SL2,
    Cyclic(3), Dihedral(4), Symmetric(3), Symmetric(1),
]  # fmt: skip


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def everything(group: Group) -> Representation:
    """Blocks of every kind that the group has, some of them several times."""
    rep = trivial(group, 2) + 3 * vector(group) + sign(group)
    rep = rep + vector(group).tensor(vector(group) + trivial(group)) + 2 * sign(group).tensor(vector(group))
    if group.linear_dim == 3:
        rep = rep + 2 * pseudovector(group)
    if group.order is not None:
        rep = rep + regular(group)
    return rep


@st.composite
def representations(draw: st.DrawFn, group: Group, copies: int = 9, kinds: int = 4) -> Representation:
    """A random direct sum of multiples of the group's blocks, possibly empty."""
    pool = [trivial(group), vector(group), sign(group), vector(group).tensor(vector(group))]
    picks = draw(st.lists(st.tuples(st.integers(1, copies), st.sampled_from(pool)), max_size=kinds))
    return sum((m * rep for m, rep in picks), start=trivial(group, 0))
