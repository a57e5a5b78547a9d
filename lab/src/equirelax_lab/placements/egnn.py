"""EGNN (Satorras et al., arXiv 2102.09844): one residual on h and one on x of every layer.

Every layer is called as `layer(h, x, v, ...)` and returns `(h, x)`. Both residuals read [h, x, v]. The one that is added to h
mixes vectors into scalars, the one that is added to x mixes components. Positions are read as they are, which also relaxes
translations, or relative to their mean over the rows of a graph, which keeps translations exact.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equirelax.errors import PlacementError
from equirelax.relaxation.entries import own_modules
from equirelax.relaxation.graphs import neighbourhood_mean
from equirelax.relaxation.kinds import MLP, EquivariantDense, ResidualKind
from equirelax.relaxation.placements.placement import (
    Placed,
    Placement,
    Survey,
    register_placement,
)
from equirelax.relaxation.sites import AddTo, BlockSite, Reader, argument
from equirelax.relaxation.spec import spec
from equirelax.symmetry import E, O, positions, trivial, vector


@dataclass(frozen=True)
class NodeState(Reader):
    """[h, x, v] of a layer's call, with x optionally centred on its graph: shape (nodes, h + 3 + 3).

    Graphs are distinguished by their edges (argument 3, `edge_index`): a node is centred on the mean over itself
    and its neighbours, which for fully connected graphs is the graph's mean. Either way the result does not
    depend on a translation of the graph.
    """

    centred: bool

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        h = argument(args, kwargs, 0, "h")
        x = argument(args, kwargs, 1, "x")
        v = argument(args, kwargs, 2, "v")
        if self.centred:
            x = x - neighbourhood_mean(x, argument(args, kwargs, 3, "edge_index"))
        return torch.cat([h, x, torch.zeros_like(x) if v is None else v], dim=-1)


@spec("egnn")
@dataclass(frozen=True)
class EGNNBlocks(Placement):
    """Two residuals on every module that the pattern names, called as
    `layer(h, x, v, edge_index, ...) -> (h, x)`.

    Args:
        residual: the kind of residual.
        centred: read positions relative to their neighbourhood's mean
            (translations stay exact), or as they are.
        pattern: pattern of the layers' paths.
    """

    residual: ResidualKind = dataclasses.field(default_factory=lambda: MLP(layers=2, init="normal", std=1e-3))
    centred: bool = True
    pattern: str = "layers.*"

    def survey(self, model: nn.Module) -> Survey:
        """Slots "h" and "x" on every layer; the number of scalar features is read from
        the layer's attribute `hidden`.
        """
        placed: list[Placed] = []
        for path, module in own_modules(model):
            if not fnmatch.fnmatch(path, self.pattern) or path.count(".") != self.pattern.count("."):
                continue
            hidden = getattr(module, "hidden", None)
            if not isinstance(hidden, int):
                raise PlacementError(
                    f"{path} ({type(module).__name__}): an EGNN layer needs an integer attribute `hidden`, "
                    f"its number of scalar features"
                )
            placed += [Placed(site, self.residual) for site in self._sites(path, hidden)]
        if not placed:
            raise PlacementError(
                f"{type(model).__name__} has no module at {self.pattern!r}: not an EGNN; give the pattern of "
                f"its layers"
            )
        return Survey(tuple(placed), {})

    def _sites(self, path: str, hidden: int) -> tuple[BlockSite, BlockSite]:
        group = O(3) if self.centred else E(3)
        scalars, where = trivial(group, hidden), vector(group) if self.centred else positions(group)
        inputs = scalars + where + vector(group)
        reader = NodeState(self.centred)
        relaxes = "O(3)" if self.centred else "E(3), translations too"
        return (
            BlockSite(path, inputs, scalars, reader=reader, writer=AddTo(0), slot="h", relaxes=relaxes),
            BlockSite(path, inputs, vector(group), reader=reader, writer=AddTo(1), slot="x", relaxes=relaxes),
        )


register_placement("egnn", lambda: EGNNBlocks(centred=False))
register_placement("egnn-centred", EGNNBlocks)
register_placement("egnn-equivariant", lambda: EGNNBlocks(EquivariantDense(init="normal", std=1e-3)))
