"""A placement of a residual stream from positions over the blocks of an unrecognised network of invariants."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import nn

from equirelax.errors import PlacementError
from equirelax.relaxation.entries import own_modules
from equirelax.relaxation.kinds import StreamStep
from equirelax.relaxation.placements.blocks import outermost_paths
from equirelax.relaxation.placements.placement import Placed, Placement, Survey, with_starts
from equirelax.relaxation.position_streams import position_stream
from equirelax.relaxation.sites import Named
from equirelax.relaxation.spec import spec


@spec("streams")
@dataclass(frozen=True)
class Streams(Placement):
    """One stream over all blocks, which reads positions and adds to the invariant features of the nodes; one gamma per block.

    Args:
        target: A path pattern, or the name of a class, of modules that return features (nodes, channels).
        channels: Number of these features, or the name of the network's attribute that holds it.
        positions: The argument with the positions (nodes, n) in calls of the network: its name, or (position, keyword).
        batch: The argument with the number (nodes,) of every node's graph in these calls, likewise; None takes `batch`.
        source: Path of the network whose calls are read; "" is the model itself.
        item: The entry of the blocks' output to which the stream is added; None: the output is a tensor.
        centred: Whether positions are read relative to the mean of their graph (translations stay exact), or as they are (ACE).
        one_graph: Whether every call has one graph, if no argument numbers them.
        residual: The kind of the stream's steps.
        size: n, the dimension of space.

    Examples:
        >>> Streams("InteractionBlock", "hidden_channels", centred=False).positions
        'pos'
    """

    target: str
    channels: int | str
    positions: Named = "pos"
    batch: Named | None = None
    source: str = ""
    item: int | str | None = None
    centred: bool = True
    one_graph: bool = False
    residual: StreamStep = dataclasses.field(default_factory=StreamStep)
    size: int = 3

    def survey(self, model: nn.Module) -> Survey:
        """Choose every module that `target` names inside the network.

        Raises:
            PlacementError: There is no such module or attribute, or the kind of residual is not for streams.
        """
        modules = dict(own_modules(model))
        network = modules.get(self.source)
        if network is None:
            raise PlacementError(
                f"Streams: {type(model).__name__} has no module {self.source!r} to read positions from"
            )
        if not isinstance(self.residual, StreamStep):
            raise PlacementError(
                f"a residual stream is made of StreamStep, and not of {type(self.residual).__name__}"
            )
        width = getattr(network, self.channels, None) if isinstance(self.channels, str) else self.channels
        if not isinstance(width, int):
            raise PlacementError(
                f"Streams: {self.source or type(model).__name__} has no integer attribute {self.channels!r}: give the number of "
                "channels, or the path of the network that has it, source=..."
            )
        inside = f"{self.source}." if self.source else ""
        found = outermost_paths(modules.items(), self.target, "Streams")
        sites = position_stream(
            [path for path in modules if path in found and path.startswith(inside)],
            width,
            self.source,
            network,
            argument=self.positions,
            batch=self.batch,
            item=self.item,
            centred=self.centred,
            one_graph=self.one_graph,
            size=self.size,
        )
        return Survey(with_starts(Placed(site, self.residual) for site in sites), {})
