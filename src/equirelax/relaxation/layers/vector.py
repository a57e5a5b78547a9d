"""Vector-neuron linear maps (Deng et al., arXiv 2104.12229): `Y = W X` on channels of vectors, which commutes with rotations.

A module with integer attributes `channel_axis` and `vector_axis`, which say where its channels and vectors are, is
recognised. Any other module is declared by `Linear` in the placement (see `channels`). The
residual is a dense map 3C -> 3C'. With an attribute `takes_common = True` the module may get a second argument
`common`, with channels that all points share. They follow the channels of the first argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from equirelax.errors import PlacementError, RepresentationError
from equirelax.relaxation.columns import Columns, SharedColumns
from equirelax.relaxation.layers.channels import channels_of, fold_channels
from equirelax.relaxation.layers.family import Fold, LayerFamily, Skip, register
from equirelax.relaxation.sites import Site, argument, first_parameter, misfit
from equirelax.symmetry import O, vector


@dataclass(frozen=True)
class VectorSite(Site):
    """Channels and vector components of the first argument as columns (batch, channels * n, points).

    If the vector axis directly follows the channel axis, reading them is a view and copies nothing.

    Args:
        channel_axis, vector_axis: The axes of channels and components in input and output.
        common: Whether the module may get a second argument `common`, with channels (batch, c, n) that all
            points share.
        name: The name of the first argument, for calls by keyword.
    """

    channel_axis: int = field(kw_only=True)
    vector_axis: int = field(kw_only=True)
    common: bool = field(default=False, kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    @property
    def feature_axis(self) -> int:
        """-2, the feature axis of columns."""
        return -2

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Columns:
        """Return the columns, in two parts if there are channels that points share."""
        own = to_columns(argument(args, kwargs, 0, self.name), self.channel_axis, self.vector_axis, self.path)
        shared = (args[1] if len(args) > 1 else kwargs.get("common")) if self.common else None
        return own if shared is None else SharedColumns(own, shared.flatten(1))

    def add(self, output: Tensor, delta: Tensor) -> Tensor:
        """Return the output with the columns added on their axes."""
        channel, vector_ = self.channel_axis % output.dim(), self.vector_axis % output.dim()
        moved = output.movedim((channel, vector_), (1, 2)) if (channel, vector_) != (1, 2) else output
        delta = delta.reshape(moved.shape).to(output.dtype)
        return output + (delta.movedim((1, 2), (channel, vector_)) if moved is not output else delta)

    def misfit(self, output: Any, delta: Tensor) -> str:
        """Say why `delta` cannot be added; see `Site.misfit`."""
        if not isinstance(output, Tensor) or output.dim() < 3:
            return misfit(output, delta)
        channel, vector_ = self.channel_axis % output.dim(), self.vector_axis % output.dim()
        others = [size for axis, size in enumerate(output.shape) if axis not in (channel, vector_)]
        columns = output.shape[channel] * output.shape[vector_]
        return misfit(output, delta, (others[0], columns, math.prod(others[1:])))


def to_columns(x: Tensor, channel_axis: int, vector_axis: int, path: str = "") -> Tensor:
    """Reshape (batch, channels, n, points...), in any order of axes, to (batch, channels * n, points)."""
    channel, vector_ = channel_axis % x.dim(), vector_axis % x.dim()
    if x.dim() < 3:
        raise RepresentationError(
            f"{path}: a vector-neuron map needs a tensor with batch, channel and vector axes; this one has "
            f"shape {tuple(x.shape)}"
        )
    if (channel, vector_) != (1, 2):
        x = x.movedim((channel, vector_), (1, 2))
    return x.reshape(
        x.shape[0], x.shape[1] * x.shape[2], x.shape[3:].numel()
    )  # -1 is ambiguous for an empty tensor


@register
class VectorNeuronLinear(LayerFamily):
    """Modules with integer attributes `channel_axis` and `vector_axis` and a weight of shape (out_channels, in_channels)."""

    name = "vector-neuron"

    def matches(self, module: nn.Module) -> bool:
        """Recognise the attributes `channel_axis` and `vector_axis`."""
        return isinstance(getattr(module, "channel_axis", None), int) and isinstance(
            getattr(module, "vector_axis", None), int
        )

    def site(self, path: str, module: nn.Module) -> Site | Skip:
        """Relax the map from all components of all channels to all components of all channels."""
        layer: Any = module  # known by its attributes, of no class in particular
        base = vector(O(int(getattr(layer, "vector_size", 3))))
        try:
            ins, outs = channels_of(path, module)
        except PlacementError:  # a pool or a norm with the same layout
            return Skip("has channel_axis and vector_axis, but no weight of shape (out, in) over channels")
        return VectorSite(
            path,
            ins * base,
            outs * base,
            family=self.name,
            relaxes=base.group.name,
            channel_axis=int(layer.channel_axis),
            vector_axis=int(layer.vector_axis),
            common=bool(getattr(layer, "takes_common", False)),
            name=first_parameter(module),
        )

    def fold(self, module: nn.Module, site: Site, weight: Tensor, bias: Tensor | None) -> Fold:
        """Fold the mean diagonal of every block. There is no invariant vector, so a bias folds to zero."""
        return fold_channels(module, site, weight)
