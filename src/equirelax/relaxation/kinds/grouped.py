"""Residuals whose channels are split into groups: dense within a group, and zero between groups.

The copies of a block are its channels. Those of each kind of block are dealt to the groups in turn (copy j to group
j mod G), so that concatenated features, such as those of a node and of its messages, occur in every group.
Fewer than G channels of a kind are left over. As inputs, every group reads them; as outputs, they are written from all inputs.
So any number of channels is allowed, and a map with fewer channels than groups is dense.

    W = [ W_1                S_1 ]        W_g: out/G x in/G,  S_g: out/G x left-over inputs,
        [      ...           ... ]        R: left-over outputs x all inputs
        [             W_G    S_G ]
        [           R            ]        (up to the order of the features)

The channels of a group form a representation, which is the same for every group, so the symmetry group acts within the blocks.
The commutators K of W with it therefore have the pattern of W, and the penalties of W are the sums of those of its blocks, each
on the features that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.relaxation.columns import Columns, dense
from equirelax.relaxation.kinds.dense import DenseMap
from equirelax.relaxation.kinds.kind import (
    Init,
    LinearMap,
    Penalised,
    ResidualKind,
    Rule,
    Terms,
    initialise,
    register,
)
from equirelax.relaxation.matrices import Matrices, without_vectors
from equirelax.relaxation.terms.linear import Moment, linear_terms, stacked_terms
from equirelax.relaxation.terms.precision import penalty_dtype
from equirelax.settings import COUNT, NOT_NEGATIVE, within
from equirelax.symmetry import Representation
from equirelax.symmetry.blocks import Block
from equirelax.symmetry.group import constants


@dataclass(frozen=True)
class Split:
    """The division of the channels of a representation into G groups.

    Args:
        own: (G, size), the features of every group.
        shared: (rest,), the features that are left over.
        own_rep, shared_rep: Representations of the features of one group, and of those that are left over.
    """

    own: Tensor
    shared: Tensor
    own_rep: Representation
    shared_rep: Representation


def split(rep: Representation, groups: int) -> Split:
    """Deal the channels of `rep` to `groups` groups."""
    kinds: dict[Block, list[Tensor]] = {}  # kind of block -> (size,) features of every copy
    for (copies, block), where in zip(rep.blocks, rep.slices(), strict=True):
        features = torch.arange(where.start, where.stop).view(copies, block.dim)
        kinds.setdefault(block, []).append(features)
    own, shared, own_blocks, shared_blocks = [], [], [], []
    for block, found in kinds.items():
        channels = torch.cat(found)
        each = len(channels) // groups
        dealt, rest = channels[: each * groups], channels[each * groups :]
        own.append(dealt.view(each, groups, block.dim).transpose(0, 1).flatten(1))
        shared.append(rest.flatten())
        own_blocks.append((each, block))
        shared_blocks.append((len(rest), block))
    return Split(
        torch.cat(own, dim=1),
        torch.cat(shared),
        Representation(rep.group, own_blocks),
        Representation(rep.group, shared_blocks),
    )


class Tables:
    """The index tables of a `GroupedMap`, on every device on which it has been.

    They are constants and not buffers, which tools average, round and fill with zeros. Copies and pickles hold only those on
    the CPU.

    Args:
        read, written: See `GroupedMap`.
        order: The permutation that sorts `written`.
    """

    def __init__(self, read: Tensor, written: Tensor, order: Tensor) -> None:
        self._on = {read.device: (read, written, order)}

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tables read, written and order."""
        if device not in self._on:
            with constants():
                first = next(iter(self._on.values()))
                self._on[device] = (first[0].to(device), first[1].to(device), first[2].to(device))
        return self._on[device]

    def __getstate__(self) -> dict[str, Any]:
        return {"_on": dict([next(iter(self._on.items()))])}


class GroupedMap(LinearMap):
    """`W x` on the feature axis, with W dense within each of G groups of channels. W is never formed to apply it.

    Args:
        in_rep, out_rep: Representations of the features. Both have at least G channels of some kind.
        groups: G.
        feature_axis: See `ResidualMap`.

    Attributes:
        weight: (G, out, in), one matrix for every group, whose inputs are its channels and those that every group reads.
        rest: (left-over outputs, in_rep.dim), or None if all outputs are dealt to the groups.
        part_in, part_out: Representations of the input and output of one matrix of `weight`.
        rest_out: The representation of the outputs of `rest`.
    """

    def __init__(
        self, in_rep: Representation, out_rep: Representation, groups: int, feature_axis: int = -1
    ) -> None:
        super().__init__()
        self.feature_axis = feature_axis
        self.in_dim = in_rep.dim
        with constants():
            ins, outs = split(in_rep, groups), split(out_rep, groups)
            written = torch.cat([outs.own.flatten(), outs.shared])
            read = torch.cat([ins.own, ins.shared.expand(groups, -1)], 1)
            self._tables = Tables(read, written, written.argsort())
        self.part_in, self.part_out = ins.own_rep + ins.shared_rep, outs.own_rep
        self.rest_out = outs.shared_rep
        self.weight = nn.Parameter(torch.empty(groups, self.part_out.dim, self.part_in.dim))
        self.rest = nn.Parameter(torch.empty(len(outs.shared), in_rep.dim)) if len(outs.shared) else None

    @property
    def groups(self) -> int:
        """The number of groups, G."""
        return len(self.weight)

    @property
    def read(self) -> Tensor:
        """(G, in), the features that each matrix of `weight` reads."""
        return self._tables.on(self.weight.device)[0]

    @property
    def written(self) -> Tensor:
        """(G * out + left-over), the features that the rows of `weight` and `rest` write."""
        return self._tables.on(self.weight.device)[1]

    @property
    def _order(self) -> Tensor:
        return self._tables.on(self.weight.device)[2]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GroupedMap:
        moved: GroupedMap = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tables.on(self.weight.device)  # now, since the first call may be compiled or captured
        return moved

    def matrices(self) -> dict[str, tuple[Matrices, ...]]:
        """The matrices of the groups."""
        return {"weight": without_vectors([Matrices(0, tuple(self.weight.shape), (0, 1, 2))])}

    def effective_weight(self) -> Tensor:
        """W as a dense matrix, of shape (out_dim, in_dim)."""
        rows = self.weight.new_zeros(self.groups, self.part_out.dim, self.in_dim)
        rows = rows.scatter(2, self.read[:, None].expand_as(self.weight), self.weight).flatten(0, 1)
        return (rows if self.rest is None else torch.cat([rows, self.rest]))[self._order]

    def linear_rule(self) -> Rule:
        """The rule of grouped maps, whose penalties are computed group by group."""
        return grouped_sums

    def penalty_entries(self, in_rep: Representation) -> int:
        """Count one Gram matrix per group, and one of all inputs for the outputs that are left over."""
        rest = 0 if self.rest is None else self.in_dim**2
        return self.groups * self.part_in.dim**2 + rest if in_rep.linear else 0

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * W x`, by G products of thin matrices that include the scale."""
        weight: Tensor = self.weight
        rest: Tensor | None = self.rest
        if scale is not None:
            weight, rest = scale * weight, None if rest is None else scale * rest
        x = dense(x)
        if self.feature_axis == -1:
            parts = self._gather(x.reshape(-1, x.shape[-1]).T)  # (G, in, rows)
            y = torch.bmm(weight, parts).flatten(0, 1).T
            y = y.reshape(*x.shape[:-1], y.shape[-1])
            if rest is not None:
                y = torch.cat([y, nn.functional.linear(x, rest)], dim=-1)
        else:
            y = torch.matmul(weight, self._gather(x)).flatten(-3, -2)  # (..., G * out, points)
            if rest is not None:
                y = torch.cat([y, torch.matmul(rest, x)], dim=-2)
        return y.index_select(self.feature_axis, self._order)

    def _gather(self, x: Tensor) -> Tensor:
        """Gather the features that each group reads from columns x (..., in_dim, points): (..., G, in, points)."""
        return x.index_select(-2, self.read.flatten()).unflatten(-2, self.read.shape)


@register("grouped")
@dataclass(frozen=True)
class Grouped(ResidualKind):
    """A linear map that is dense within each of `groups` groups of channels, and does not mix the groups.

    Its weights, optimizer states and arithmetic, also in its exact penalties, are 1/G of those of a dense map. Unlike a
    low-rank map it has full rank. Convolutions are not supported.

    Attributes:
        groups: G, at least 1. If a layer has fewer input or output channels than this, its map is dense. Channels
            that are left over when those of a kind are dealt to the groups are mixed with all.
        init: As for `Dense`.
        std: Standard deviation for "normal".
    """

    groups: int = within(COUNT, 4)
    init: Init = "zeros"
    std: float = within(NOT_NEGATIVE, 1e-4)

    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> GroupedMap | DenseMap:
        """A `GroupedMap`, or a `DenseMap` if nothing can be split."""
        whole = [split(rep, self.groups).own_rep.dim == 0 for rep in (in_rep, out_rep)]
        if any(whole) or self.groups == 1:
            plain = DenseMap(in_rep.dim, out_rep.dim, feature_axis)
            initialise([plain.weight], self.init, self.std, generator)
            return plain
        map_ = GroupedMap(in_rep, out_rep, self.groups, feature_axis)
        for matrix in [*map_.weight.detach(), *([] if map_.rest is None else [map_.rest])]:
            initialise([matrix], self.init, self.std, generator)
        return map_


def grouped_sums(calls: Sequence[Penalised]) -> list[Terms]:
    """The terms of grouped maps, differentiable in the weights any number of times.

    Matrices between the same representations, of all groups and all residuals, are computed in one stack.
    """
    found: list[Terms] = []
    stacks: dict[tuple[Any, ...], list[tuple[int, Sequence[Tensor], Sequence[Moment | Tensor]]]] = {}
    for index, call in enumerate(calls):
        map_, dtype = call.map, penalty_dtype(call.map.weight.dtype)
        points = [dense(x).detach().to(dtype) for x in call.inputs]
        data = _of_groups(map_, points)
        found.append(_of_the_rest(map_, points, call.in_rep, dtype))
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


def _of_the_rest(map_: GroupedMap, points: list[Tensor], in_rep: Representation, dtype: torch.dtype) -> Terms:
    """The sums of the matrix that writes the left-over outputs from all inputs."""
    if map_.rest is None:
        return map_.weight.new_zeros((), dtype=dtype), map_.weight.new_zeros((), dtype=dtype)
    return linear_terms(map_.rest.to(dtype), None, points, map_.feature_axis, in_rep, map_.rest_out)


def _of_groups(map_: GroupedMap, points: list[Tensor]) -> Sequence[Moment | Tensor]:
    """The second moment (in, in) of the features that every group reads, or the rows (n, in) if these are fewer."""
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
