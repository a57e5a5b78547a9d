"""The equivariant transformer of TorchMD-NET (Thoelke and De Fabritiis, arXiv 2202.02541): vector maps in attention layers.

    [U_1 v, U_2 v, U_3 v] = (U + gamma f) v        vectors v (atoms, 3, channels), section 2.2

The first layer is left out: its vectors are zero. Everything else acts on invariants, or multiplies vectors by them. The
readout's blocks are in `gated_equivariant`.
"""

from __future__ import annotations

from torch import nn

from equirelax.relaxation.networks.maps import map_sites, maps_of
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.sites import Site


@register_network
class TorchMDET(Network):
    """The representation model: `attention_layers`, each with `vec_proj`."""

    name = "TorchMD-ET"
    classes = ("TorchMD_ET",)

    def matches(self, module: nn.Module) -> bool:
        """Whether every layer maps its vectors to three times as many, without bias."""
        layers = _layers(module)
        return bool(layers) and all(maps_of(layer, "vec_proj", times=3) for layer in layers)

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """One site for every layer but the first."""
        maps: dict[str, nn.Linear] = {}
        for i, layer in enumerate(_layers(module)[1:], start=1):
            maps.update(maps_of(layer, "vec_proj", path=f"attention_layers.{i}"))
        return map_sites(path, maps)


def _layers(module: nn.Module) -> list[nn.Module]:
    layers = getattr(module, "attention_layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []
