"""PaiNN (Schuett, Unke and Gastegger, arXiv 2102.03150): the map of vectors in every update block.

    [V mu, U mu] = (W + gamma f) mu        vectors mu (atoms, 3, channels), section 3.3

Everything else in a block acts on invariants, or multiplies vectors by them. Two codes are known: schnetpack's, whose map is
`mu_channel_mix` of a `PaiNNMixing`; and that of fairchem (Open Catalyst), where it is `vec_proj` of a `PaiNNUpdate`. Blocks are
recognised one by one, so that they may stand in any network. Those of the readout are in `gated_equivariant`.
"""

from __future__ import annotations

from torch import nn

from equirelax.relaxation.networks.maps import map_sites, maps_of
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.sites import Site

# Class of the update block -> its map of vectors.
MAPS = {"PaiNNMixing": "mu_channel_mix", "PaiNNUpdate": "vec_proj"}


@register_network
class PaiNN(Network):
    """The update blocks of both codes."""

    name = "PaiNN"
    classes = tuple(MAPS)

    def matches(self, module: nn.Module) -> bool:
        """Whether the block has a map without bias from its vectors to twice as many."""
        return bool(_map(module))

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """The one of the map."""
        return map_sites(path, _map(module))


def _map(module: nn.Module) -> dict[str, nn.Linear]:
    """A block's map of vectors; empty where it has none."""
    names = {cls.__name__ for cls in type(module).__mro__}
    known = [maps_of(module, name, times=2) for block, name in MAPS.items() if block in names]
    return next((maps for maps in known if maps), {})
