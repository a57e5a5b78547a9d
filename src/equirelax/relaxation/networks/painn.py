"""PaiNN (Schuett, Unke and Gastegger, arXiv 2102.03150): the maps of vectors in every update block.

    [V mu, U mu] = (W + gamma f) mu        vectors mu (atoms, 3, channels), section 3.3

Everything else in a block acts on invariants, or multiplies vectors by them. U and V are one map in schnetpack
(`mu_channel_mix` of a `PaiNNMixing`) and in fairchem (Open Catalyst; `vec_proj` of a `PaiNNUpdate`), and two in others. Blocks
are recognised one by one, in any network. Those of the readout are in `gated_equivariant`.

Several public implementations give U and V a bias. These are not equivariant, and are not relaxed.
"""

from __future__ import annotations

from torch import nn

from equirelax.relaxation.networks.maps import map_sites, maps_of
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.sites import Site

# The names of U and V as one map, and as two.
ONE = ("mu_channel_mix", "vec_proj")
TWO = (("U", "V"), ("update_U", "update_V"), ("linear_U", "linear_V"), ("linearU", "linearV"))


@register_network
class PaiNN(Network):
    """One update block of any implementation."""

    name = "PaiNN"
    classes = ("PaiNNMixing", "PaiNNUpdate", "PainnUpdate")

    def matches(self, module: nn.Module) -> bool:
        """Whether the block maps its vectors, without bias, once to twice as many or twice to as many."""
        return bool(_maps(module))

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """One site for every map."""
        return map_sites(path, _maps(module))


def _maps(module: nn.Module) -> dict[str, nn.Linear]:
    """A block's maps of vectors; none if it has another form."""
    known = [
        *(maps_of(module, name, times=2) for name in ONE),
        *(maps_of(module, *pair, times=1) for pair in TWO),
    ]
    return next((maps for maps in known if maps), {})
