"""EGNN (Satorras et al., arXiv 2102.09844) as in egnn-pytorch: two residuals on every block, on its features and coordinates.

Its weights mix only invariants, so there is no layer whose equivariance could be relaxed. Both residuals read
[features, coordinates relative to the mean of their graph]. One is added to the features, where it mixes vectors into
invariants, and one to the coordinates, where it mixes components. Translations stay exact.

`EGNN` is called as `block(feats, coors, edges, mask, adj_mat)` and returns `(feats, coors)` of padded molecules. `EGNN_Sparse` is
called as `block(x, edge_index, edge_attr, batch)`, where x and the result hold [coordinates, features] of flat graphs.
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
class EGNNBlock(Network):
    """The blocks of both forms. Networks of them need no separate file."""

    name = "EGNN (egnn-pytorch)"
    classes = ("EGNN", "EGNN_Sparse")
    kind: ClassVar[ResidualKind | None] = MLP(layers=2, init="normal", std=1e-3)

    def matches(self, module: nn.Module) -> bool:
        """Whether it has the arguments and the perceptrons of a block, one of which gives the number of features."""
        names = [parameter.name for parameter in parameters_of(module)]
        called = {"feats", "coors", "mask"} if _is_dense(module) else {"x", "edge_index", "batch"}
        parts = all(hasattr(module, name) for name in ("edge_mlp", "node_mlp", "coors_mlp"))
        return called <= set(names) and parts and _channels(module) is not None

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """Slots "h" and "x", each where the block updates it."""
        block: Any = module
        features = trivial(O(3), _channels(module) or 0)
        if _is_dense(module):
            where = vector(O(3))
            reads = (Reads("feats", features), Reads("coors", where, centred=True))
            adds = (Adds(0, features, slot="h"), Adds(1, where, slot="x"))
        else:
            size = block.pos_dim
            where, spans = vector(O(size)), ((0, size), (size, size + features.dim))
            features = trivial(O(size), features.dim)
            reads = (Reads("x", features, span=spans[1]), Reads("x", where, span=spans[0], centred=True))
            adds = (Adds(None, features, span=spans[1], slot="h"), Adds(None, where, span=spans[0], slot="x"))
        updates = (block.node_mlp, block.coors_mlp)
        updated = tuple(one for one, update in zip(adds, updates, strict=True) if update is not None)
        return block_sites(path, module, reads, updated, mask="mask" if _is_dense(module) else None)


def _is_dense(module: nn.Module) -> bool:
    """Whether it takes features and coordinates as separate tensors."""
    return not hasattr(module, "pos_dim")


def _channels(module: nn.Module) -> int | None:
    """The number of features: an attribute of the sparse form, and the output size of the other form's update."""
    if not _is_dense(module):
        found = getattr(module, "feats_dim", None)
    else:
        update = getattr(module, "node_mlp", None)
        last = update[-1] if isinstance(update, nn.Sequential) and len(update) else None
        found = getattr(last, "out_features", None)
    return found if isinstance(found, int) else None
