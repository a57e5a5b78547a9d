"""Geometric vector perceptrons (Jing et al., arXiv 2009.01411) as in gvp-pytorch and ESM-IF1: both maps of vectors.

    V_h = (W_h + gamma_h f_h) V,    V' = (W_v + gamma_v f_v) V_h        algorithm 1

Vectors are (nodes, channels, 3), and `wh`, `wv` are called on the transposed tensor (nodes, 3, channels). Norms of V_h enter
the scalars, and invariants gate V'. Networks of them have no common class.
"""

from __future__ import annotations

from torch import nn

from equirelax.relaxation.networks.maps import map_sites, maps_of
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.sites import Site


@register_network
class GVP(Network):
    """One perceptron that takes vectors."""

    name = "geometric vector perceptron"
    classes = ("GVP",)

    def matches(self, module: nn.Module) -> bool:
        """Whether its maps have no bias, and the numbers of channels of its attributes `vi`, `h_dim` and `vo`."""
        return bool(_maps(module))

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """One site for every map."""
        return map_sites(path, _maps(module))


def _maps(module: nn.Module) -> dict[str, nn.Linear]:
    """`wh`, and `wv` if the perceptron returns vectors; none if it has another form."""
    ins, hidden, outs = (getattr(module, name, None) for name in ("vi", "h_dim", "vo"))
    maps = maps_of(module, "wh", "wv") if outs else maps_of(module, "wh")
    sizes = [(linear.in_features, linear.out_features) for linear in maps.values()]
    return maps if sizes == [(ins, hidden), (hidden, outs)][: 2 if outs else 1] else {}
