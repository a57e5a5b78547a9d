"""EGNO (Xu et al., arXiv 2401.11037): the residuals of ACE's code on h and on x of every layer.

Those on h are a stream, as in `egno`, whose start is a plain linear map. Those on x are not chained from layer to layer: each
is a perceptron of the x that its layer reads, at every time. Since x is not centred, they also relax translations.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import nn

from equirelax.relaxation.kinds import NormedPerceptron, ResidualKind, StreamStep
from equirelax.relaxation.placements.placement import Placed, Placement, Survey, register_placement
from equirelax.relaxation.sites import AddTo, Arguments, BlockSite
from equirelax.relaxation.spec import spec
from equirelax_lab.placements.egno import EGNOStreams


@spec("egno-ace")
@dataclass(frozen=True)
class EGNOLayers(Placement):
    """A stream "h" over all layers, and a residual "x" on each, called as `layer(h, x, ...) -> (h, x)`: two gammas per layer.

    Args:
        residual: the kind of the stream's steps.
        coordinates: the kind of the residuals on x.
        root: path of the EGNO within the model, with a trailing dot, if it is not the model itself.
    """

    residual: StreamStep = dataclasses.field(
        default_factory=lambda: StreamStep(spectral=True, iterations=5, plain_start=True)
    )
    coordinates: ResidualKind = dataclasses.field(default_factory=NormedPerceptron)
    root: str = ""

    def survey(self, model: nn.Module) -> Survey:
        """The sites of `EGNOStreams`, with separate readers for those on x."""
        found = EGNOStreams(self.residual, centred=False, root=self.root).survey(model)
        return Survey(tuple(self._current(one) for one in found.placed), found.left)

    def _current(self, placed: Placed) -> Placed:
        if placed.site.slot != "x":
            return placed
        site, reader = placed.site, Arguments(((1, "x"),))
        current = BlockSite(
            site.path,
            site.in_rep,
            site.out_rep,
            reader=reader,
            writer=AddTo(1),
            slot=site.slot,
            relaxes=site.relaxes,
        )
        return Placed(current, self.coordinates)


register_placement("egno-ace", EGNOLayers)
