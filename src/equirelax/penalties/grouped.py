"""Penalties of linear residuals whose channels are in groups: exact, and as cheap as the groups are small.

The group acts within every group of channels, so that the commutators K of W with it have the pattern of W: both sums of
CR's regulariser are those of the matrices that W is made of, each on the features that it reads.
"""

from __future__ import annotations

from torch import Tensor

from equirelax.penalties.quadratic import linear_terms, second_moment, stacked_terms
from equirelax.relaxation.columns import Columns, dense
from equirelax.relaxation.grouped import GroupedMap
from equirelax.symmetry import Representation


def grouped_terms(
    weight: Tensor, rest: Tensor | None, map_: GroupedMap, inputs: list[Columns], in_rep: Representation
) -> tuple[Tensor, Tensor]:
    """(Lie sum, norm sum) of the map over all inputs; differentiable by its weights, any number of times.

    Args:
        weight, rest: the map's, in at least float32.
        inputs: features on the map's feature axis, at least one; they get no gradient.
        in_rep: how the group acts on them.
    """
    axis = map_.feature_axis
    points = [dense(x).detach() for x in inputs]
    data = [
        second_moment([x.index_select(axis, read) for x in points], axis, weight.dtype, len(read), False)
        for read in map_.read
    ]
    lie, norm = stacked_terms(list(weight.unbind()), None, data, map_.part_in, map_.part_out)
    lie, norm = lie.sum(), norm.sum()
    if rest is not None:
        more_lie, more_norm = linear_terms(rest, None, points, axis, in_rep, map_.rest_out)
        lie, norm = lie + more_lie, norm + more_norm
    return lie, norm
