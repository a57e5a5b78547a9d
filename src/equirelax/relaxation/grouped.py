"""Residuals whose channels are split into groups: dense within a group, nothing between two groups.

The copies of a block are its channels. Those of each kind of block are dealt to the groups in turn (copy j to group
j mod G), so that features that were put one behind the other, such as a node's and its messages', meet in every group.
What is left over, fewer than G channels of a kind, is read by every group as an input, and written from all inputs as an
output: no number of channels is refused, and a map that has fewer channels than groups is dense.

    W = [ W_1                S_1 ]        W_g: out/G x in/G,  S_g: out/G x left-over inputs,
        [      ...           ... ]        R: left-over outputs x all inputs
        [             W_G    S_G ]
        [           R            ]        (up to the order of the features)

A group's channels are a representation, the same for every group. So the group acts within the blocks, and the penalties
of W are the sums of theirs, exact (`penalties.grouped`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError
from equirelax.relaxation.columns import Columns, dense
from equirelax.relaxation.linear_map import LinearMap
from equirelax.relaxation.maps import DenseMap, ResidualKind, initialise
from equirelax.relaxation.matrices import Matrices, without_vectors
from equirelax.relaxation.spec import spec
from equirelax.symmetry import Representation
from equirelax.symmetry.blocks import Block


@dataclass(frozen=True)
class Split:
    """How the channels of a representation are dealt to G groups.

    Args:
        own: (G, size), the features of every group.
        shared: (rest,), the features that are left over.
        own_rep, shared_rep: how the group acts on one group's features, and on those that are left over.
    """

    own: Tensor
    shared: Tensor
    own_rep: Representation
    shared_rep: Representation


def split(rep: Representation, groups: int) -> Split:
    """Deal the channels of `rep` to so many groups."""
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


class GroupedMap(LinearMap):
    """`W x` on the feature axis with a W that is dense within each of G groups of channels; W is never formed to apply it.

    Args:
        in_rep, out_rep: of the features; both have at least G channels of some kind.
        groups: G.
        feature_axis: as for `DenseMap`.

    Attributes:
        weight: (G, out, in), one matrix for every group: from its channels and those that every group reads.
        rest: (left-over outputs, in_rep.dim), or None where all outputs are dealt to the groups.
        part_in, part_out: how the group acts on what one of `weight` reads and writes.
        rest_out: the same for what `rest` writes.
        read: (G, in), the features that each of `weight` reads. written: (G * out + left-over), those that the rows
            of `weight` and `rest` write.
    """

    read: Tensor
    written: Tensor
    _order: Tensor

    def __init__(
        self, in_rep: Representation, out_rep: Representation, groups: int, feature_axis: int = -1
    ) -> None:
        super().__init__()
        self.feature_axis = feature_axis
        self.in_dim = in_rep.dim
        ins, outs = split(in_rep, groups), split(out_rep, groups)
        self.part_in, self.part_out = ins.own_rep + ins.shared_rep, outs.own_rep
        self.rest_out = outs.shared_rep
        written = torch.cat([outs.own.flatten(), outs.shared])
        # functions of the representations: no state dict needs them
        self.register_buffer("read", torch.cat([ins.own, ins.shared.expand(groups, -1)], 1), persistent=False)
        self.register_buffer("written", written, persistent=False)
        self.register_buffer("_order", written.argsort(), persistent=False)
        self.weight = nn.Parameter(torch.empty(groups, self.part_out.dim, self.part_in.dim))
        self.rest = nn.Parameter(torch.empty(len(outs.shared), in_rep.dim)) if len(outs.shared) else None

    @property
    def groups(self) -> int:
        """G."""
        return len(self.weight)

    def matrices(self) -> dict[str, tuple[Matrices, ...]]:
        """One matrix for every group."""
        return {"weight": without_vectors([Matrices(0, tuple(self.weight.shape), (0, 1, 2))])}

    def effective_weight(self) -> Tensor:
        """W written out, of shape (out_dim, in_dim)."""
        rows = self.weight.new_zeros(self.groups, self.part_out.dim, self.in_dim)
        rows = rows.scatter(2, self.read[:, None].expand_as(self.weight), self.weight).flatten(0, 1)
        return (rows if self.rest is None else torch.cat([rows, self.rest]))[self._order]

    def effective_bias(self) -> None:
        """None."""
        return None

    def forward(self, x: Columns, scale: Tensor | None = None) -> Tensor:
        """`scale * W x`, G products of thin matrices; the scale goes into these."""
        weight: Tensor = self.weight
        rest: Tensor | None = self.rest
        if scale is not None:
            weight, rest = scale * weight, None if rest is None else scale * rest
        x = dense(x)
        if self.feature_axis == -1:
            parts = self._gather(x.reshape(-1, x.shape[-1]).T)  # (G, in, rows)
            y = torch.bmm(weight, parts).flatten(0, 1).T.unflatten(0, x.shape[:-1])
            if rest is not None:
                y = torch.cat([y, nn.functional.linear(x, rest)], dim=-1)
        else:
            y = torch.matmul(weight, self._gather(x)).flatten(-3, -2)  # (..., G * out, points)
            if rest is not None:
                y = torch.cat([y, torch.matmul(rest, x)], dim=-2)
        return y.index_select(self.feature_axis, self._order)

    def _gather(self, x: Tensor) -> Tensor:
        """What each group reads of columns x (..., in_dim, points): (..., G, in, points)."""
        return x.index_select(-2, self.read.flatten()).unflatten(-2, self.read.shape)


@spec("grouped")
@dataclass(frozen=True)
class Grouped(ResidualKind):
    """A linear map that is dense within each of `groups` groups of channels, and does not mix these.

    It has a G-th of a dense map's weights, optimizer states and arithmetic, in its exact penalties too, and unlike
    a map of low rank it has full rank. Convolutions are refused.

    Args:
        groups: G, at least 1. Where a layer has fewer channels than that, reading or writing, its map is dense. Channels
            that are left over when those of a kind are dealt to the groups are mixed with all.
        init, std: as for `Dense`.
    """

    groups: int = 4
    init: str = "zeros"
    std: float = 1e-4

    def build(
        self,
        in_rep: Representation,
        out_rep: Representation,
        feature_axis: int,
        generator: torch.Generator | None = None,
    ) -> GroupedMap | DenseMap:
        """A `GroupedMap`, or a `DenseMap` where nothing can be split.

        Raises:
            PlacementError: the number of groups is below 1, or the init is unknown.
        """
        ins, outs = self._split(in_rep), self._split(out_rep)
        if not (ins.own_rep.dim and outs.own_rep.dim) or self.groups == 1:
            plain = DenseMap(in_rep.dim, out_rep.dim, feature_axis)
            initialise([plain.weight], self.init, self.std, generator, "Grouped")
            return plain
        map_ = GroupedMap(in_rep, out_rep, self.groups, feature_axis)
        matrices = [*map_.weight.detach(), *([] if map_.rest is None else [map_.rest])]
        for matrix in matrices:
            initialise([matrix], self.init, self.std, generator, "Grouped")
        return map_

    def count(self, in_dim: int, out_dim: int) -> int:
        """As if every feature were a channel of one kind; see `count_between`."""
        each_in, each_out = in_dim // self.groups, out_dim // self.groups
        left_in, left_out = in_dim % self.groups, out_dim % self.groups
        return self._weights(each_in, left_in, each_out, left_out)

    def count_between(self, in_rep: Representation, out_rep: Representation) -> int:
        """Weights of the groups, and of what is left over."""
        ins, outs = self._split(in_rep), self._split(out_rep)
        return self._weights(ins.own_rep.dim, len(ins.shared), outs.own_rep.dim, len(outs.shared))

    def _weights(self, each_in: int, left_in: int, each_out: int, left_out: int) -> int:
        in_dim = self.groups * each_in + left_in
        return self.groups * each_out * (each_in + left_in) + left_out * in_dim

    def _split(self, rep: Representation) -> Split:
        if self.groups < 1:
            raise PlacementError(f"Grouped: groups is {self.groups}; expected at least 1")
        return split(rep, self.groups)
