"""EGNN (Satorras et al., arXiv 2102.09844) in the authors' own code: two residuals on every layer, on h and on coordinates.

A layer is called as `layer(h, edge_index, coord, ...)`, possibly with velocities, and returns `(h, coord, edge_attr)`. Its
weights mix only invariants. Both residuals read [h, coord, velocities]. One is added to h, where it mixes vectors into
invariants, and one to the coordinates, where it mixes components. Coordinates are relative to the mean of a node and its
neighbours, so that translations stay exact.

Layers for padded molecules, with masks of nodes and edges, are left alone: their edges reach padded nodes.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from equirelax.relaxation.blocks import Adds, Reads, block_sites
from equirelax.relaxation.kinds import MLP, ResidualKind
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.sites import Site, parameters_of
from equirelax.symmetry import O, trivial, vector


@register_network
class EGNNLayer(Network):
    """The layers. Networks of them have various classes."""

    name = "EGNN"
    classes = ("E_GCL",)
    kind: ClassVar[ResidualKind | None] = MLP(layers=2, init="normal", std=1e-3)

    def matches(self, module: nn.Module) -> bool:
        """Whether it has the arguments and the perceptrons of a layer without masks, and keeps the number of features."""
        names = {parameter.name for parameter in parameters_of(module)}
        called = {"h", "edge_index", "coord"} <= names and not {"node_mask", "edge_mask"} & names
        parts = all(isinstance(getattr(module, name, None), nn.Module) for name in ("edge_mlp", "coord_mlp"))
        return called and parts and _added(module) and _channels(module) is not None

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """Slots "h" and "x"."""
        features, where = trivial(O(3), _channels(module) or 0), vector(O(3))
        reads: tuple[Reads, ...] = (Reads("h", features), Reads("coord", where, centred=True))
        if "vel" in {parameter.name for parameter in parameters_of(module)}:
            reads = (*reads, Reads("vel", where))
        adds = (Adds(0, features, slot="h"), Adds(1, where, slot="x"))
        return block_sites(path, module, reads, adds, edges="edge_index")


def _added(module: nn.Module) -> bool:
    """Whether the layer adds to its input features, so that it returns as many as it receives."""
    return bool(getattr(module, "residual", getattr(module, "recurrent", False)))


def _channels(module: nn.Module) -> int | None:
    """The number of features that the update of the nodes returns."""
    update: Any = getattr(module, "node_mlp", None)
    last = update[-1] if isinstance(update, nn.Sequential) and len(update) else None
    found = getattr(last, "out_features", None)
    return found if isinstance(found, int) else None
