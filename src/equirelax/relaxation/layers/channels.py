"""Linear maps over channels that all transform in the same way: `y_o = sum_c W_oc x_c` with x_c in any representation.

Examples are vector neurons, the vectors of PaiNN and TorchMD-ET, the 3 x 3 tensors of TensorNet and the spherical channels of
ViSNet. Each has one matrix (out, in) over channels, which commutes with every group element. Channels are on one axis, and the
components of the representation on another or on two (a tensor). The residual is dense, from all components of all channels
to all components of all channels.

Its features are ordered by the blocks of the representation, and within a block by channel. With one block, such as
a vector, that is the order (channel, component).

Folding: the orthogonal projection of a dense map onto `W (x) 1_n` is the mean of the n diagonals of its blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError, RepresentationError, UnfoldableError
from equirelax.relaxation.layers.family import Fold, LayerFamily, Skip, register
from equirelax.relaxation.sites import Site, argument, first_parameter, misfit
from equirelax.symmetry import On, Representation


@dataclass(frozen=True)
class Layout:
    """The axes of channels and components in a tensor.

    Args:
        channels: Number of channels; 0 if the tensor has no axis of channels.
        channel_axis: The axis of the channels.
        axes: the axis of the components, or the two axes of a tensor.
        sizes: Number of components of every block of the representation, on all of `axes` together.
        side: number of components on each of `axes`.
        ranks: pairs (number of axes, `axes` for a tensor with this many), for tensors to which `axes` does not apply.
    """

    channels: int
    channel_axis: int
    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    side: int
    ranks: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def standing(self, dims: int) -> tuple[int, ...]:
        """The axes, channels (if any) first, in a tensor with `dims` axes, counted from 0."""
        axes = dict(self.ranks).get(dims, self.axes)
        return tuple(axis % dims for axis in ((self.channel_axis, *axes) if self.channels else axes))

    def mismatch(self, shape: tuple[int, ...]) -> str:
        """Describe what is wrong with a tensor of this shape; empty if it fits."""
        wanted = [("channels", self.channels, self.channel_axis)] if self.channels else []
        wanted += [("components", self.side, axis) for axis in dict(self.ranks).get(len(shape), self.axes)]
        dims = len(shape)
        fits = all(-dims <= axis < dims and shape[axis] == size for _, size, axis in wanted)
        if fits and len(set(self.standing(dims))) == len(wanted):
            return ""
        places = " and ".join(f"{size} {what} on axis {axis}" for what, size, axis in wanted)
        return f"expected {places}, and the tensor has shape {tuple(shape)}"

    def rows(self, x: Tensor) -> Tensor:
        """The rows (..., features) of a tensor that fits, with the declared axes last and flattened."""
        axes = self.standing(x.dim())
        x = x.movedim(axes, tuple(range(-len(axes), 0)))
        if not self.channels:
            return x.flatten(-len(axes))
        x = x.flatten(-len(axes) + 1) if len(axes) > 2 else x  # (..., channels, components)
        if len(self.sizes) == 1:
            return x.flatten(-2)
        return torch.cat([part.flatten(-2) for part in x.split(self.sizes, dim=-1)], dim=-1)

    def back(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The inverse of `rows`: a tensor of the given shape."""
        axes = self.standing(len(shape))
        if self.channels:
            parts = rows.split([self.channels * size for size in self.sizes], dim=-1)
            parts = tuple(part.unflatten(-1, (self.channels, -1)) for part in parts)
            rows = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).flatten(-2)
        declared = [shape[axis] for axis in axes]
        return rows.unflatten(-1, declared).movedim(tuple(range(-len(axes), 0)), axes)

    def row_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the rows of a tensor of the given shape."""
        axes = self.standing(len(shape))
        others = [size for axis, size in enumerate(shape) if axis not in axes]
        return (*others, math.prod([shape[axis] for axis in axes]))  # a list, which torch.compile can trace


def laid_out(
    action: On,
    channel_axis: int,
    channels: int,
    ranks: tuple[tuple[int, tuple[int, ...]], ...] = (),
    parts: Representation | None = None,
) -> tuple[Layout, Representation]:
    """Return the layout of channels that all transform by `action`, and the representation of all of them together.

    Args:
        action: The action on one channel, with the axis or axes of its components.
        channel_axis: Axis of the channels.
        channels: Number of channels; 0: there is no axis of channels, and one action.
        ranks: See `Layout`.
        parts: See `channel_site`.
    """
    rep = action.full if parts is None else parts
    sizes = tuple(copies * block.dim for copies, block in rep.blocks)
    whole = Representation(rep.group, [((channels or 1) * copies, block) for copies, block in rep.blocks])
    return Layout(channels, channel_axis, action.axes, sizes, action.representation.dim, ranks), whole


@dataclass(frozen=True)
class AxisSite(Site):
    """Features on one axis or two (a tensor), with channels on another axis, as rows (..., features).

    Args:
        in_layout, out_layout: The layouts of the first argument and of the output.
        name: The name of the argument, for calls by keyword.
    """

    in_layout: Layout = field(kw_only=True)
    out_layout: Layout = field(kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return the rows of the first argument.

        Raises:
            RepresentationError: The argument does not have the declared axes.
        """
        x = argument(args, kwargs, 0, self.name)
        wrong = (
            self.in_layout.mismatch(tuple(x.shape))
            if isinstance(x, Tensor)
            else f"it is a {type(x).__name__}"
        )
        if wrong:
            raise RepresentationError(
                f"{self.path}: the input does not have the declared axes: {wrong}. Name the axes of the tensor with which "
                "this module itself is called, after any transpose before it: On(representation, axis) and channel_axis"
            )
        return self.in_layout.rows(x)

    def add(self, output: Tensor, delta: Tensor) -> Tensor:
        """Return the output with the rows added on their axes."""
        return output + self.out_layout.back(delta, tuple(output.shape)).to(output.dtype)

    def misfit(self, output: Any, delta: Tensor) -> str:
        """Say why `delta` cannot be added; see `Site.misfit`."""
        if not isinstance(output, Tensor):
            return misfit(output, delta)
        if wrong := self.out_layout.mismatch(tuple(output.shape)):
            return f"of the output, {wrong}"
        return misfit(output, delta, self.out_layout.row_shape(tuple(output.shape)))


@register
class ChannelLinear(LayerFamily):
    """Matrices over channels. They match only by declaration, since axes and representations cannot be guessed."""

    name = "channel-linear"

    def matches(self, module: nn.Module) -> bool:
        """Always False; see `Linear` in the placement."""
        return False

    def site(self, path: str, module: nn.Module) -> Site | Skip:
        """Never called without a declaration."""
        return Skip("its axes are not declared")

    def fold(self, module: nn.Module, site: Site, weight: Tensor, bias: Tensor | None) -> Fold:
        """Fold the mean diagonal over all components. An equivariant map of this form has no bias."""
        return fold_channels(module, site, weight)


def fold_channels(module: nn.Module, site: Site, weight: Tensor) -> Fold:
    """Project a dense map onto `W (x) 1`, and give W to the module's own weight.

    Raises:
        UnfoldableError: the module has no parameter `weight` of shape (out, in) over channels.
    """
    own = getattr(module, "weight", None)
    ins, outs = site.in_rep.blocks, site.out_rep.blocks
    channels = tuple(own.shape[:2]) if isinstance(own, nn.Parameter) and own.dim() >= 2 else (0, 0)
    fits = isinstance(own, nn.Parameter) and all(channels) and own.numel() == math.prod(channels)
    sizes = [copies * block.dim // channels[1] for copies, block in ins] if fits else []
    if not isinstance(own, nn.Parameter) or sizes != [
        copies * block.dim // (channels[0] or 1) for copies, block in outs
    ]:
        raise UnfoldableError(
            f'{site.path} ({type(module).__name__}) has no parameter "weight" of shape (out, in) over channels to fold into; '
            'project with mode="drop" or unfoldable="drop"'
        )
    total = weight.new_zeros(channels)
    folded = torch.zeros_like(weight)
    tiles = []
    for size, rows, columns in zip(sizes, site.out_rep.slices(), site.in_rep.slices(), strict=True):
        shape = (channels[0], size, channels[1], size)
        total = total + weight[rows, columns].reshape(shape).diagonal(dim1=1, dim2=3).sum(-1)
        tiles.append((rows, columns, shape, size))
    mean = total / sum(sizes)
    for rows, columns, shape, size in tiles:
        tile = weight.new_zeros(shape)
        tile.diagonal(dim1=1, dim2=3).copy_(mean[..., None].expand(-1, -1, size))
        folded[rows, columns] = tile.reshape(shape[0] * size, shape[2] * size)
    return Fold(folded, None, [(own, mean.reshape(own.shape))])


def channels_of(path: str, module: nn.Module) -> tuple[int, int]:
    """Read the (in, out) channels from a weight of shape (out, in).

    Raises:
        PlacementError: the module has no such weight.
    """
    own = getattr(module, "weight", None)
    if not isinstance(own, Tensor) or own.dim() < 2 or own.shape[2:].numel() != 1:
        raise PlacementError(
            f"{path} ({type(module).__name__}): its channels cannot be read from a weight of shape (out, in); give "
            "channels=(in, out)"
        )
    return own.shape[1], own.shape[0]


def channel_site(
    path: str,
    module: nn.Module,
    action: On,
    channel_axis: int,
    channels: tuple[int, int] | None = None,
    ranks: tuple[tuple[int, tuple[int, ...]], ...] = (),
    parts: Representation | None = None,
) -> Site:
    """Make the site of a map over channels.

    Args:
        action: The action of the group on one channel, with the axis or axes of its components.
        channel_axis: Axis of the channels in input and output.
        channels: (in, out); None reads them from the module's weight.
        ranks: See `Layout`.
        parts: The representation of the components on all axes of `action` together, if it is not the product over the axes.

    Raises:
        PlacementError: the module has a bias, which is not equivariant; or it mixes another axis; or its channels
            are not known.
    """
    name = f"{path or 'the model'} ({type(module).__name__})"
    own = getattr(module, "weight", None)
    if isinstance(getattr(module, "bias", None), Tensor) and not action.invariant:
        raise PlacementError(
            f"{name} has a bias, which adds the same number to every component of {action.representation!r} and so is not "
            "equivariant: build it with bias=False, or leave it out"
        )
    if isinstance(module, nn.Linear) and channel_axis != -1:
        raise PlacementError(
            f"{name} mixes the last axis of its input, and channel_axis is {channel_axis}: channels of a torch.nn.Linear are on "
            "axis -1; name the components' axis after any transpose before it"
        )
    counts = channels or channels_of(path, module)
    if (
        channels is not None
        and isinstance(own, Tensor)
        and own.dim() == 2
        and tuple(own.shape) != channels[::-1]
    ):
        raise PlacementError(
            f"{name}: its weight has shape {tuple(own.shape)}, the declared channels are (in, out) {channels}"
        )
    (in_layout, in_rep), (out_layout, out_rep) = (
        laid_out(action, channel_axis, c, ranks, parts) for c in counts
    )
    return AxisSite(
        path,
        in_rep,
        out_rep,
        family=ChannelLinear.name,
        relaxes=in_rep.group.name,
        in_layout=in_layout,
        out_layout=out_layout,
        name=first_parameter(module),
    )
