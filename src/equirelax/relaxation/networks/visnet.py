"""ViSNet (Wang et al., arXiv 2210.16518) as in PyTorch Geometric: maps over channels of spherical features.

Features are (atoms, 3, channels) with l = 1, or (atoms, 8, channels) with l = 1 and 2 on one axis. Several maps of every layer
are relaxed: `vec_proj`, whose scalar products enter the scalars; and `w_src_proj`, `w_trg_proj` (with vertex features also
`t_src_proj`, `t_trg_proj`), whose rejections enter the edge features. The first layer is left out: its features are zero.
The readout `EquivariantScalar` is relaxed as in `gated_equivariant`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from equirelax.relaxation.networks.gated_equivariant import readout_maps
from equirelax.relaxation.networks.maps import map_sites, maps_of
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.networks.spherical import spherical
from equirelax.relaxation.sites import Site, join

# Maps that the last layer lacks.
EDGES = ("w_src_proj", "w_trg_proj")
VERTICES = ("t_src_proj", "t_trg_proj")


@register_network
class ViSNet(Network):
    """The representation `ViSNetBlock`, alone or with the readout of a `ViSNet`."""

    name = "ViSNet"
    classes = ("ViSNet", "ViSNetBlock")

    def matches(self, module: nn.Module) -> bool:
        """Whether l is 1 or 2, and every layer has its maps."""
        layers = _layers(_block(module))
        return getattr(_block(module), "lmax", None) in (1, 2) and bool(layers) and all(map(_maps, layers))

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """One site for every map of the readout and of every layer but the first."""
        block: Any = _block(module)
        inside = "" if block is module else "representation_model"
        maps: dict[str, nn.Linear] = {}
        for i, layer in enumerate(_layers(block)[1:], start=1):
            maps.update(_maps(layer, join(inside, f"vis_mp_layers.{i}")))
        if block is not module:
            readout = getattr(module, "output_model", None)
            maps.update(readout_maps(readout, "output_model") if isinstance(readout, nn.Module) else {})
        return map_sites(path, maps, spherical(range(1, block.lmax + 1)))


def _block(module: nn.Module) -> nn.Module:
    """The representation, which is a part of a `ViSNet`, or the module itself."""
    inner = getattr(module, "representation_model", None)
    return inner if isinstance(inner, nn.Module) else module


def _layers(block: nn.Module) -> list[nn.Module]:
    layers = getattr(block, "vis_mp_layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []


def _maps(layer: nn.Module, path: str = "") -> dict[str, nn.Linear]:
    """The maps of a layer, the last or an earlier one; none if it has another form."""
    own = maps_of(layer, "vec_proj", path=path, times=3)
    if not own or getattr(layer, "last_layer", False):
        return own
    edges = maps_of(layer, *EDGES, path=path, times=1)
    return {**own, **edges, **maps_of(layer, *VERTICES, path=path, times=1)} if edges else {}
