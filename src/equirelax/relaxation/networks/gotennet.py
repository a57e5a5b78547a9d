"""GotenNet (Aykent and Xia, ICLR 2025) in the authors' code: maps over channels of spherical features.

Features X are (atoms, components, channels), with the degrees 1 to `lmax` on one axis. In every `GATA` that updates edge
features, `W_vq` and `W_vk` are relaxed (one map for all degrees, or one for each); scalar products are taken of their results. In
every `EQFF` the map `W_vu` is relaxed; norms of its result enter the scalars, and it is added to X. Blocks are recognised one by
one. The gated blocks of a readout are in `gated_equivariant`.

Networks with degrees above 2 are not recognised. The components of degree 3 that gotennet 1.1.2 computes have different
normalisations, so such a network is not equivariant, and there is nothing to project back to.
"""

from __future__ import annotations

from torch import nn

from equirelax.relaxation.networks.maps import map_sites, maps_of
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.networks.spherical import spherical
from equirelax.relaxation.sites import Site


@register_network
class GotenNet(Network):
    """Both kinds of blocks."""

    name = "GotenNet"
    classes = ("GATA", "EQFF")

    def matches(self, module: nn.Module) -> bool:
        """Whether its largest degree is 1 or 2, and it has the maps of one of the kinds."""
        return getattr(module, "lmax", None) in (1, 2) and bool(_maps(module))

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """One site for every map."""
        return tuple(
            site for degrees, maps in _maps(module) for site in map_sites(path, maps, spherical(degrees))
        )


def _maps(module: nn.Module) -> list[tuple[range, dict[str, nn.Linear]]]:
    """(degrees of its features, maps by name) pairs; empty if the block has another form or no maps of features."""
    degrees = range(1, getattr(module, "lmax", 0) + 1)
    if mixing := maps_of(module, "W_vu", times=1):
        return [(degrees, mixing)]
    queries, keys = maps_of(module, "W_vq"), getattr(module, "W_vk", None)
    if not queries:
        return []
    if not isinstance(keys, nn.ModuleList):
        both = maps_of(module, "W_vq", "W_vk")
        return [(degrees, both)] if both else []
    each = [(degrees[i : i + 1], maps_of(keys, str(i), path="W_vk")) for i in range(len(keys))]
    whole = len(keys) == len(degrees) and all(maps for _, maps in each)
    return [(degrees, queries), *each] if whole else []
