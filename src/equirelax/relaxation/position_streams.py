"""Residual streams that start from the positions of a network's nodes: ACE's residuals on SchNet (arXiv 2505.13631).

    s_0 = Linear(3, C)(positions)    s_i = Linear_i(BatchNorm_i(s_{i-1}))
    y_i = block_i(...) + gamma_i s_i

A network whose features are all invariant has no layer whose equivariance could be relaxed: positions enter as distances and
angles. The stream gives the nodes the information that these hide. If positions are read relative to the mean of their graph,
translations stay exact. If they are read as they are, as in ACE, translations are relaxed too.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from equirelax.relaxation.graphs import Graphs, Positions
from equirelax.relaxation.sites import AddTo, Argument, Named
from equirelax.relaxation.streams import StreamSite
from equirelax.symmetry import E, O, positions, trivial, vector


def position_stream(
    blocks: Iterable[str],
    channels: int,
    source: str,
    module: nn.Module,
    *,
    argument: Named = "pos",
    batch: Named | None = None,
    item: int | str | None = None,
    centred: bool = True,
    one_graph: bool = False,
    size: int = 3,
) -> tuple[StreamSite, ...]:
    """Make the sites of a stream over the blocks of a network, all of which return `channels` invariant features per node.

    Args:
        blocks: Paths of the modules to whose outputs the stream is added, in the order in which they are called.
        channels: Width of the stream.
        source, module: The path of the network from whose call the positions are read, and the network.
        argument: The argument with the positions (nodes, n) in that call.
        batch: The argument with the number of every node's graph in that call; None takes the argument `batch`.
        item: The entry of the blocks' output to which the stream is added; None: the output is a tensor.
        centred: Whether positions are read relative to the mean of their graph.
        one_graph: Whether every call has one graph.
        size: n, the dimension of space.

    Raises:
        PlacementError: The network's forward lacks a named argument.
    """
    group = O(size) if centred else E(size)
    graphs = Graphs.of(module, source, batch=batch, one_graph=one_graph) if centred else None
    reader = Positions(Argument.of(module, argument, source), graphs)
    return tuple(
        StreamSite(
            path,
            vector(group) if centred else positions(group),
            trivial(group, channels),
            reader=reader,
            writer=AddTo(item),
            relaxes=group.name if centred else f"{group.name}, translations too",
            stream="positions",
            source=source,
        )
        for path in blocks
    )
