"""SEGNN (Brandstetter et al., arXiv 2110.02905): residuals on the two tensor products of
the node update of every layer.

CR puts a dense map on each (papers' N-body settings: normal initialisation with deviation 1e-4, no bias),
ACE a GELU perceptron of three layers on each: eight residuals for four layers. Both read the product's
first input, [x, sum of messages].
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import nn

from equirelax.errors import PlacementError
from equirelax.relaxation.maps import MLP, Dense, EquivariantDense, ResidualKind
from equirelax.relaxation.placements.layers import Constant, Layers
from equirelax.relaxation.placements.placement import Placement, Survey, register_placement
from equirelax.relaxation.spec import spec

UPDATES = "layers.*.update_*"


@spec("segnn")
@dataclass(frozen=True)
class SEGNNUpdates(Placement):
    """A residual on `layers.*.update_1` and `layers.*.update_2`.

    Args:
        residual: `Dense` (CR) or `MLP` (ACE).
        root: path of the SEGNN within the model, with a trailing dot, where it is not the model itself.

    The node attributes' 0e component is 1 by construction of the network, which lets dense residuals fold.
    """

    residual: ResidualKind = dataclasses.field(default_factory=lambda: Dense(init="normal", std=1e-4))
    root: str = ""

    def survey(self, model: nn.Module) -> Survey:
        """Only the node updates; every other layer is listed as not included."""
        pattern = self.root + UPDATES
        try:
            return Layers((pattern,), (), self.residual, (), (Constant(pattern, 0, 1.0),)).survey(model)
        except PlacementError as error:
            raise PlacementError(
                f"{type(model).__name__} does not look like a SEGNN (tensor products at {pattern!r}): {error}"
            ) from error


register_placement("segnn-cr", SEGNNUpdates)
register_placement("segnn-ace", lambda: SEGNNUpdates(MLP(layers=3)))
register_placement("segnn-equivariant", lambda: SEGNNUpdates(EquivariantDense(init="normal", std=1e-4)))
