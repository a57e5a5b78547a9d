"""Geometric vector perceptrons (Jing et al., arXiv 2009.01411), the code of gvp-pytorch and of ESM-IF1: both maps of vectors.

    V_h = (W_h + gamma_h f_h) V,    V' = (W_v + gamma_v f_v) V_h        algorithm 1

Vectors are (nodes, channels, 3), and `wh`, `wv` are called on the transposed tensor (nodes, 3, channels). Norms of V_h enter
the scalars, and invariants gate V'. A network of them has no class of its own.
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
        """Whether its maps, without bias, have the numbers of channels `vi`, `h_dim` and `vo` that it tells."""
        return bool(_maps(module))

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """One for every map."""
        return map_sites(path, _maps(module))


def _maps(module: nn.Module) -> dict[str, nn.Linear]:
    """`wh`, and `wv` where it gives vectors; none where it has another form."""
    ins, hidden, outs = (getattr(module, name, None) for name in ("vi", "h_dim", "vo"))
    maps = maps_of(module, "wh", "wv") if outs else maps_of(module, "wh")
    sizes = [(linear.in_features, linear.out_features) for linear in maps.values()]
    return maps if sizes == [(ins, hidden), (hidden, outs)][: 2 if outs else 1] else {}
