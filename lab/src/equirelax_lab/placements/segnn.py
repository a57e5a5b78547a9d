"""SEGNN (Brandstetter et al., arXiv 2110.02905): residuals on the node update of every layer, and nowhere else.

CR puts a dense map on each of the two updates (papers' N-body settings: normal initialisation with deviation 1e-4, no bias),
ACE a GELU perceptron of three layers: eight residuals for four layers. `networks.segnn` describes their places.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

from torch import nn

from equirelax.errors import PlacementError
from equirelax.relaxation.entries import own_modules
from equirelax.relaxation.kinds import MLP, Dense, EquivariantDense, ResidualKind
from equirelax.relaxation.networks import recognised
from equirelax.relaxation.placements.layers import family_site
from equirelax.relaxation.placements.placement import (
    Placed,
    Placement,
    Survey,
    register_placement,
)
from equirelax.relaxation.sites import Site
from equirelax.relaxation.spec import spec
from equirelax.relaxation.summary import SKIPPED


@spec("segnn")
@dataclass(frozen=True)
class SEGNNUpdates(Placement):
    """Two residuals on every layer of every SEGNN in the model.

    Args:
        residual: `Dense` (CR) or `MLP` (ACE). Perceptrons of three layers whose `hidden` is None have the widths of ACE's
            code, 2d and d, where d is the number of hidden features.
    """

    residual: ResidualKind = dataclasses.field(default_factory=lambda: Dense(init="normal", std=1e-4))

    def survey(self, model: nn.Module) -> Survey:
        """The node updates; every other module is left unchanged.

        Raises:
            PlacementError: the model contains no SEGNN.
        """
        modules = own_modules(model)
        found = recognised(modules, "SEGNN")
        if not found:
            raise PlacementError(
                f"{type(model).__name__} does not look like a SEGNN, and holds none: expected a module of a class SEGNN or "
                "MolecularSEGNN whose `layers` have update_1 and update_2, or update_layer_1 and update_layer_2"
            )
        sites = [site for network in found for of_module in network.sites.values() for site in of_module]
        relaxed = {site.path for site in sites}
        inside = tuple(f"{path}." for path in relaxed)
        others = [
            path
            for path, module in modules
            if path not in relaxed and not path.startswith(inside) and family_site(path, module) is not None
        ]
        left = dict.fromkeys(others, (SKIPPED, "is no node update of a SEGNN"))
        return Survey(tuple(Placed(site, self._kind(site)) for site in sites), left)

    def _kind(self, site: Site) -> ResidualKind:
        kind, width = self.residual, site.out_rep.dim
        if isinstance(kind, MLP) and kind.hidden is None and kind.layers == 3:
            return dataclasses.replace(kind, hidden=(2 * width, width))
        return kind


register_placement("segnn-cr", SEGNNUpdates)
register_placement("segnn-ace", partial(SEGNNUpdates, MLP(layers=3)))
register_placement("segnn-equivariant", partial(SEGNNUpdates, EquivariantDense(init="normal", std=1e-4)))
