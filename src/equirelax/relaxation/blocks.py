"""Residuals on whole blocks, which read several tensors of the call and add to several tensors of the output.

    y_j = block(x_1, x_2, ...)_j + gamma_j f_j([x_1, x_2, ...])

`Reads` and `Adds` declare for every tensor its place in the call or the output, how it transforms, and on which axes. All
other axes are rows, such as the nodes of a graph, and are the same for every tensor. Each tensor that is added to has
a separate residual, and each residual reads all tensors that are read.

Coordinates are points, which a translation moves. They are read relative to the mean of their graph (`centred`), as
vectors, so that translations stay exact. Or they are read as they are, as `positions(E(3))`, which also relaxes translations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError, RepresentationError
from equirelax.relaxation.graphs import Graphs
from equirelax.relaxation.layers.channels import Layout, laid_out
from equirelax.relaxation.sites import AddTo, Argument, BlockSite, Named, Reader, Writer, misfit
from equirelax.relaxation.spec import spec
from equirelax.symmetry import GridField, On, Representation, as_representation

Span = tuple[int, int]
"""The entries first, ..., end - 1 of a tensor's last axis."""


@spec("reads")
@dataclass(frozen=True)
class Reads:
    """A tensor that the residuals of a block read.

    Args:
        argument: Name of the argument in the block's forward, or (position, keyword).
        rep: The representation of the tensor or, with `channel_axis`, of one of its channels, in any form that
            `equirelax.symmetry.as_representation` takes, on axis -1 unless ``On(rep, axis)`` says otherwise.
        item: The entry of an argument that is a tuple, a list or a mapping; None reads the argument itself.
        channel_axis, channels: Axis and number of channels that transform in the same way, as in `Linear`.
        span: The range (first, end) of entries on the last axis, if one tensor holds several features.
        centred: Whether these are coordinates that are read relative to the mean of their graph. Their representation is then
            that of vectors.

    Raises:
        PlacementError: The arguments do not fit together.

    Examples:
        >>> Reads("coors", "1x1o", centred=True).rep
        1x1o
    """

    argument: str | tuple[int, str]
    rep: Any
    item: int | str | None = field(default=None, kw_only=True)
    channel_axis: int | None = field(default=None, kw_only=True)
    channels: int | None = field(default=None, kw_only=True)
    span: Span | None = field(default=None, kw_only=True)
    centred: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check(self)
        if not isinstance(self.argument, str):
            object.__setattr__(self, "argument", tuple(self.argument))
        rep = self.rep.representation if isinstance(self.rep, On) else self.rep
        vectors = all(block.dim == rep.group.linear_dim and not block.trivial for _, block in rep.blocks)
        if self.centred and not (vectors and rep.linear):
            raise PlacementError(
                f"{self}: only coordinates are centred, whose representation is that of vectors, such as '1x1o'; a mean is "
                "subtracted from nothing else"
            )


@spec("adds")
@dataclass(frozen=True)
class Adds:
    """A tensor of a block's output to which a residual is added.

    Args:
        item: The entry of an output that is a tuple, a list or a mapping; None: the output is the tensor.
        rep, channel_axis, channels, span: As for `Reads`. A term added to coordinates is a vector.
        slot: Name of the residual, after a colon in its key; by default the entry, or none if there is only one residual.
    """

    item: int | str | None
    rep: Any
    channel_axis: int | None = field(default=None, kw_only=True)
    channels: int | None = field(default=None, kw_only=True)
    span: Span | None = field(default=None, kw_only=True)
    slot: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        _check(self)


def _check(declared: Reads | Adds) -> None:
    """Read the representation of a declaration, and check that the rest fits it.

    Raises:
        PlacementError: It does not.
    """
    rep = as_representation(declared.rep)
    if isinstance(rep, GridField):
        raise PlacementError(f"{declared}: blocks hold features on axes, and no fields on a grid")
    object.__setattr__(declared, "rep", rep)
    if (declared.channels is None) != (declared.channel_axis is None):
        raise PlacementError(f"{declared}: channels and channel_axis belong together; give both or none")
    if declared.span is not None:
        object.__setattr__(declared, "span", tuple(declared.span))
        if len(declared.span) != 2 or not 0 <= declared.span[0] < declared.span[1]:
            raise PlacementError(f"{declared}: span is (first, end) with 0 <= first < end")


def _laid_out(declared: Reads | Adds) -> tuple[Layout, Representation]:
    """The layout of a declaration's features, and the representation of all of them."""
    action = declared.rep if isinstance(declared.rep, On) else On(declared.rep)
    axis = -1 if declared.channel_axis is None else declared.channel_axis
    return laid_out(action, axis, declared.channels or 0)


@dataclass(frozen=True)
class _Read:
    """One tensor, with its layout and reader in the block."""

    argument: Argument
    layout: Layout
    span: Span | None
    centred: bool


@dataclass(frozen=True)
class BlockReader(Reader):
    """Rows (..., features) of several tensors of a call, concatenated.

    Args:
        tensors: The tensors that are read.
        graphs: The graphs over which means are taken.
        path: Path of the block, for messages.
    """

    tensors: tuple[_Read, ...]
    graphs: Graphs
    path: str

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return the rows.

        Raises:
            RepresentationError: A tensor does not have the declared axes, or its rows differ from those of the first.
            PlacementError: Coordinates are to be centred, but nothing says which rows are of one graph.
        """
        rows: list[Tensor] = []
        for each in self.tensors:
            one = self._rows(each, each.argument(args, kwargs))
            if each.centred:
                one = one - self.graphs.mean(one, args, kwargs, self.path)
            if rows and one.shape[:-1] != rows[0].shape[:-1]:
                raise RepresentationError(
                    f"{self.path}: {_name(each)} has rows {tuple(one.shape[:-1])}, {_name(self.tensors[0])} has "
                    f"{tuple(rows[0].shape[:-1])}; axes that are not declared must agree"
                )
            rows.append(one if not rows else one.to(rows[0].dtype))
        return torch.cat(rows, dim=-1)

    def _rows(self, each: _Read, x: Any) -> Tensor:
        if not isinstance(x, Tensor):
            raise RepresentationError(
                f"{self.path}: {_name(each)} is declared to be a tensor, the call has a {type(x).__name__} there: name another "
                "argument, or the entry with item=..."
            )
        part, wrong = narrowed(x, each.span)
        wrong = wrong or each.layout.mismatch(tuple(part.shape))
        if wrong:
            raise RepresentationError(f"{self.path}: {_name(each)} does not have the declared axes: {wrong}")
        return each.layout.rows(part)


def _name(each: _Read) -> str:
    entry = "" if each.argument.item is None else f"[{each.argument.item!r}]"
    return f"argument {each.argument.name!r}{entry}"


def narrowed(x: Tensor, span: Span | None) -> tuple[Tensor, str]:
    """The entries of a span on the last axis, and a description of what is wrong; empty if the tensor has them."""
    if span is None:
        return x, ""
    if x.dim() == 0 or x.shape[-1] < span[1]:
        return (
            x,
            f"the entries {span[0]} to {span[1]} of the last axis do not exist in shape {tuple(x.shape)}",
        )
    return x[..., span[0] : span[1]], ""


@dataclass(frozen=True)
class BlockWriter(Writer):
    """Adds rows (..., features) to a tensor of the output, on their axes.

    Args:
        entry: The entry of the output.
        layout: The axes of the features.
        span: As for `Adds`.
    """

    entry: AddTo
    layout: Layout
    span: Span | None

    def add(self, output: Any, delta: Tensor) -> Any:
        """Return the output with the rows added."""
        target = self.entry.find(output)
        part, _ = narrowed(target, self.span)
        added = self.layout.back(delta, tuple(part.shape)).to(target.dtype)
        if self.span is not None:
            added = nn.functional.pad(added, (self.span[0], target.shape[-1] - self.span[1]))
        return self.entry.put(output, target + added)

    def find(self, output: Any) -> Any:
        """Return the tensor, or the part of it, to which the rows are added."""
        return narrowed(self.entry.find(output), self.span)[0]

    def misfit(self, output: Any, delta: Tensor) -> str:
        """Say why the rows cannot be added; see `Writer.misfit`."""
        if wrong := self.entry.missing(output):
            return wrong
        target = self.entry.find(output)
        if not isinstance(target, Tensor):
            return misfit(target, delta)
        part, wrong = narrowed(target, self.span)
        if wrong := wrong or self.layout.mismatch(tuple(part.shape)):
            return f"of the output, {wrong}"
        return misfit(target, delta, self.layout.row_shape(tuple(part.shape)))


def block_sites(
    path: str,
    module: nn.Module,
    reads: tuple[Reads, ...],
    adds: tuple[Adds, ...],
    *,
    batch: Named | None = None,
    edges: Named | None = None,
    mask: Named | None = None,
    one_graph: bool = False,
) -> tuple[BlockSite, ...]:
    """Make the sites of one block's residuals.

    Args:
        path, module: The block.
        reads, adds: The tensors that are read, and those to which residuals are added.
        batch, edges, mask, one_graph: See `Blocks`.

    Raises:
        PlacementError: The representations are of several groups, or the forward lacks a named argument.
    """
    reading = [_laid_out(each) for each in reads]
    adding = [_laid_out(each) for each in adds]
    group = reading[0][1].group
    for _, rep in (*reading, *adding):
        if rep.group != group:
            raise PlacementError(
                f"{path or 'the model'}: {rep!r} is of {rep.group.name}, the first that is read of {group.name}; expected "
                "one group. Beside positions(E(3)), invariants are trivial(E(3), n) and vectors vector(E(3))"
            )
    graphs = Graphs.of(module, path, batch=batch, edges=edges, mask=mask, one_graph=one_graph)
    tensors = tuple(
        _Read(Argument.of(module, each.argument, path, each.item), layout, each.span, each.centred)
        for each, (layout, _) in zip(reads, reading, strict=True)
    )
    in_rep = sum((rep for _, rep in reading[1:]), reading[0][1])
    relaxes = group.name if in_rep.linear else f"{group.name}, translations too"
    return tuple(
        BlockSite(
            path,
            in_rep,
            out_rep,
            reader=BlockReader(tensors, graphs, path),
            writer=BlockWriter(AddTo(each.item), layout, each.span),
            slot=each.slot or (str(each.item) if len(adds) > 1 else ""),
            relaxes=relaxes,
        )
        for each, (layout, out_rep) in zip(adds, adding, strict=True)
    )
