"""EGNO (Xu et al., arXiv 2401.11037): ACE's two residual streams, one on h and one on x of every layer.

Each step is batch normalisation and a linear map whose weight is divided by its largest singular value. The stream on h
reads the scalar inputs that the model embeds and the time, and never h itself. If those inputs are invariant, it relaxes
nothing. The stream on x reads the positions of the first time, and the same value is added at all times. Uncentred positions, as
in ACE, also relax translations; positions relative to the mean of their graph keep translations exact.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from equirelax.errors import PlacementError
from equirelax.relaxation.entries import own_modules
from equirelax.relaxation.graphs import Graphs, Positions
from equirelax.relaxation.kinds import StreamStep
from equirelax.relaxation.placements.declarations import declared_paths
from equirelax.relaxation.placements.placement import (
    Placed,
    Placement,
    Survey,
    register_placement,
    with_starts,
)
from equirelax.relaxation.sites import AddTo, Argument, FirstInput, misfit
from equirelax.relaxation.spec import spec
from equirelax.relaxation.streams import StreamSite
from equirelax.symmetry import E, O, positions, trivial, vector

GRAPH = "graph"
"""The argument of the model's forward that holds the number of every node's graph."""


@dataclass(frozen=True)
class AtAllTimes(AddTo):
    """Adds the same value at all times to an entry of an output whose rows are the nodes, once for every time step."""

    def add(self, output: Any, delta: Tensor) -> Any:
        """The output with `delta` (nodes, dim) added."""
        target = self.find(output)  # (times * nodes, dim), all nodes of a time together
        tiled = target.view(-1, *delta.shape) + delta.to(target.dtype)
        return self.put(output, tiled.view_as(target))

    def misfit(self, output: Any, delta: Tensor) -> str:
        """As in `Writer.misfit`."""
        target = None if self.missing(output) else self.find(output)
        if not isinstance(target, Tensor):
            return f"the module gave a {type(output).__name__}, and no tuple with a tensor at {self.item}"
        if target.shape[1:] != delta.shape[1:] or target.shape[0] % delta.shape[0]:
            return (
                f"shape {tuple(delta.shape)}, (nodes, dim), does not match the output's {tuple(target.shape)}, whose rows are "
                "the nodes once for every time step"
            )
        return misfit(target[: delta.shape[0]], delta)


@spec("egno")
@dataclass(frozen=True)
class EGNOStreams(Placement):
    """Streams "h" and "x" over all layers, called as `layer(h, x, ...) -> (h, x)`: two gammas per layer.

    Args:
        residual: the kind of their steps.
        centred: the stream on x reads positions relative to their graph's mean (translations stay exact), or as
            they are (ACE).
        root: path of the EGNO within the model, with a trailing dot, if it is not the model itself.
    """

    residual: StreamStep = dataclasses.field(default_factory=lambda: StreamStep(spectral=True))
    centred: bool = False
    root: str = ""

    def survey(self, model: nn.Module) -> Survey:
        """Every module at `layers.*`; sizes are those of the linear map `embedding`, whose input the stream on h
        reads.
        """
        modules = dict(own_modules(model))
        source = self.root.rstrip(".")
        egno, embedding = modules.get(source), modules.get(f"{self.root}embedding")
        if (
            egno is None
            or not isinstance(embedding, nn.Linear)
            or not isinstance(getattr(egno, "steps", None), int)
        ):
            raise PlacementError(
                f"{source or type(model).__name__} is no EGNO: expected an integer attribute `steps` and a linear "
                f'map `embedding`. Give its path, as in EGNOStreams(root="encoder."), or another placement'
            )
        arguments = list(inspect.signature(egno.forward).parameters)
        if arguments[:1] != ["positions"] or GRAPH not in arguments:
            raise PlacementError(
                f"{source or type(model).__name__}: its forward has the arguments {arguments}; expected `positions` "
                f"first, and `{GRAPH}`, the graph of every node"
            )
        found = declared_paths(list(modules.items()), f"{self.root}layers.*", "EGNOStreams")
        layers = [path for path in modules if path in found and path.count(".") == self.root.count(".") + 1]
        h, x = self._h(embedding), self._x(source, arguments.index(GRAPH))
        sites = [dataclasses.replace(site, path=path) for path in layers for site in (h, x)]
        return Survey(with_starts(Placed(site, self.residual) for site in sites), {})

    @property
    def _group(self) -> O | E:
        return O(3) if self.centred else E(3)

    def _h(self, embedding: nn.Linear) -> StreamSite:
        return StreamSite(
            "",
            trivial(self._group, embedding.in_features),
            trivial(self._group, embedding.out_features),
            reader=FirstInput(),
            writer=AtAllTimes(0),
            slot="h",
            relaxes="nothing, if the scalar inputs are invariant",
            stream="h",
            source=f"{self.root}embedding",
        )

    def _x(self, source: str, graph: int) -> StreamSite:
        return StreamSite(
            "",
            vector(self._group) if self.centred else positions(self._group),
            vector(self._group),
            reader=Positions(
                Argument(0, "positions"), Graphs(batch=Argument(graph, GRAPH)) if self.centred else None
            ),
            writer=AtAllTimes(1),
            slot="x",
            relaxes="O(3)" if self.centred else "E(3), translations too",
            stream="x",
            source=source,
        )


register_placement("egno", EGNOStreams)
register_placement("egno-centred", lambda: EGNOStreams(centred=True))
