"""Whether one group acts through another one's representations."""

from __future__ import annotations

import torch
from torch import Tensor

from equirelax.symmetry import Group, MatrixGroup

CLOSE = 1e-6


def acts_through(group: Group, other: Group) -> bool:
    """Whether elements of ``group``, or their linear parts, are elements of ``other``.

    Checked on a few drawn ones and on the discrete generators. Where ``other`` is given by generators alone, so that
    membership cannot be decided, the generators of ``group`` have to be among its own: the Lie algebra of ``group`` in
    the span of that of ``other``, each discrete generator one of ``other``'s, or their linear parts.
    """
    if other == group:
        return True
    linear = other.dim != group.dim
    if linear and group.linear_dim != other.dim:
        return False

    def part(elements: Tensor) -> Tensor:
        return group.linear_part(elements) if linear else elements

    if _decides(other):
        drawn = group.sample(8, generator=torch.Generator().manual_seed(1))
        return bool(other.contains(part(torch.cat((drawn, group.discrete()))), atol=CLOSE).all())
    inside = _in_span(part(group.algebra()).flatten(1), other.algebra().flatten(1))
    known = torch.cat((other.identity()[None], other.discrete())).flatten(1)
    wanted = part(group.discrete() if group.order is None else group.elements()).flatten(1)
    return inside and bool((torch.cdist(wanted, known).amin(dim=1) < CLOSE).all() if len(wanted) else True)


def contains(group: Group, subgroup: Group) -> bool:
    """Whether the elements of ``subgroup``, as they are, are elements of ``group``; see `acts_through`."""
    return group.dim == subgroup.dim and acts_through(subgroup, group)


def _decides(group: Group) -> bool:
    """Whether a group can tell its elements from other matrices."""
    return not isinstance(group, MatrixGroup) or group.order is not None


def _in_span(vectors: Tensor, basis: Tensor) -> bool:
    if not len(vectors):
        return True
    rest = vectors - vectors @ torch.linalg.pinv(basis) @ basis if len(basis) else vectors
    return bool(rest.abs().max() < CLOSE)
