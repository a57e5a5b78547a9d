"""Penalties of linear residuals whose channels are in groups: exact, and with less arithmetic the smaller the groups are.

The group acts within every group of channels, so that the commutators K of W with it have the pattern of W: both sums of
CR's regulariser are those of the matrices that W is made of, each on the features that it reads. Matrices between the same
representations, of all groups of all residuals, are computed in one stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equirelax.relaxation.columns import Columns, dense
from equirelax.relaxation.grouped import GroupedMap
from equirelax.relaxation.terms.linear import Moment, linear_terms, stacked_terms
from equirelax.relaxation.terms.precision import penalty_dtype
from equirelax.symmetry import Representation


@dataclass(frozen=True)
class GroupedInputs:
    """A map in groups and what it read.

    Args:
        map: the map.
        inputs: features on its feature axis, at least one; they get no gradient.
        in_rep: how the group acts on them.
    """

    map: GroupedMap
    inputs: Sequence[Columns]
    in_rep: Representation


def grouped_terms(members: Sequence[GroupedInputs]) -> list[tuple[Tensor, Tensor]]:
    """(Lie sum, norm sum) of every map over all its inputs; differentiable by the weights, any number of times."""
    found: list[tuple[Tensor, Tensor]] = []
    stacks: dict[tuple[Any, ...], list[tuple[int, Sequence[Tensor], Sequence[Moment | Tensor]]]] = {}
    for index, member in enumerate(members):
        map_, dtype = member.map, penalty_dtype(member.map.weight.dtype)
        points = [dense(x).detach().to(dtype) for x in member.inputs]
        data = _of_groups(map_, points)
        found.append(_of_the_rest(map_, points, member.in_rep, dtype))
        rows = None if isinstance(data[0], Moment) else len(data[0])
        alike = (map_.part_in, map_.part_out, rows, dtype, map_.weight.device)
        stacks.setdefault(alike, []).append((index, map_.weight.to(dtype).unbind(), data))
    for (part_in, part_out, *_), stack in stacks.items():
        weights = [weight for _, of_one, _ in stack for weight in of_one]
        lie, norm = stacked_terms(
            weights, None, [d for _, _, of_one in stack for d in of_one], part_in, part_out
        )
        sizes = [len(of_one) for _, of_one, _ in stack]
        for (index, _, _), of_lie, of_norm in zip(stack, lie.split(sizes), norm.split(sizes), strict=True):
            rest_lie, rest_norm = found[index]
            found[index] = (of_lie.sum() + rest_lie, of_norm.sum() + rest_norm)
    return found


def _of_the_rest(
    map_: GroupedMap, points: list[Tensor], in_rep: Representation, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The sums of what writes the outputs that are left over, from all inputs."""
    if map_.rest is None:
        return map_.weight.new_zeros((), dtype=dtype), map_.weight.new_zeros((), dtype=dtype)
    return linear_terms(map_.rest.to(dtype), None, points, map_.feature_axis, in_rep, map_.rest_out)


def _of_groups(map_: GroupedMap, points: list[Tensor]) -> Sequence[Moment | Tensor]:
    """For every group the second moment of what it reads, (in, in), or the rows (n, in) where those are fewer."""
    groups, size = map_.read.shape
    if map_.feature_axis == -1:
        columns = [x.reshape(-1, x.shape[-1]).T[None] for x in points]
    else:
        columns = [x.reshape(-1, *x.shape[-2:]) for x in points]  # (batch, dim, points)
    read = [x.index_select(1, map_.read.flatten()).unflatten(1, (groups, size)) for x in columns]
    if sum(x.shape[0] * x.shape[-1] for x in read) <= size:
        return torch.cat([x.permute(1, 0, 3, 2).flatten(1, 2) for x in read], dim=1).unbind()
    total = torch.stack([torch.matmul(x, x.mT).sum(0) for x in read]).sum(0)  # (groups, size, size)
    return [Moment(gram) for gram in total]
