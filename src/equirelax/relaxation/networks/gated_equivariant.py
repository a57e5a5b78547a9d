"""Gated equivariant blocks (Schuett, Unke and Gastegger, arXiv 2102.03150, section 3.4): readouts of PaiNN, ET and ViSNet.

A block maps vectors (atoms, components, channels) twice. The norms of one image enter the scalars, which gate the other.
schnetpack has both maps in one matrix, `mix_vectors`; TorchMD-NET, fairchem and PyTorch Geometric have `vec1_proj` and
`vec2_proj`. All but one are relaxed: `EquivariantScalar` discards the vectors of its last block, so that a residual on that
`vec2_proj` would have no effect.
"""

from __future__ import annotations

from torch import nn

from equirelax.relaxation.networks.maps import map_sites, maps_of
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.sites import Site, join

# The maps of vectors in one block, in each implementation.
MAPS = (("mix_vectors",), ("vec1_proj", "vec2_proj"))
SCALAR = "EquivariantScalar"


@register_network
class GatedEquivariant(Network):
    """One gated equivariant block."""

    name = "gated equivariant block"
    classes = ("GatedEquivariantBlock",)

    def matches(self, module: nn.Module) -> bool:
        """Whether it has the maps of one of the implementations."""
        return bool(_maps(module))

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """One site for every map."""
        return map_sites(path, _maps(module))


@register_network
class ScalarReadout(Network):
    """A chain of blocks whose scalars alone are used."""

    name = "readout of gated equivariant blocks"
    classes = (SCALAR,)

    def matches(self, module: nn.Module) -> bool:
        """Whether its `output_network` is such a chain. Subclasses are excluded, since they may use the vectors."""
        return type(module).__name__ == SCALAR and bool(readout_maps(module))

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """One site for every map whose result is used."""
        return map_sites(path, readout_maps(module))


def readout_maps(module: nn.Module, path: str = "") -> dict[str, nn.Linear]:
    """The maps of vectors in a chain of blocks `output_network` whose results are used, by their paths below `path`.

    In an `EquivariantScalar` these are all but the last block's second map, and in any other chain all maps. The result is empty
    if the module has another form.
    """
    chain = getattr(module, "output_network", None)
    blocks = list(chain) if isinstance(chain, nn.ModuleList) else []
    each = [
        maps_of(block, *MAPS[1], path=join(path, f"output_network.{i}")) for i, block in enumerate(blocks)
    ]
    if not each or not all(each):
        return {}
    if type(module).__name__ == SCALAR:
        each[-1].popitem()
    return {name: linear for maps in each for name, linear in maps.items()}


def _maps(module: nn.Module) -> dict[str, nn.Linear]:
    """The maps of vectors in a block; none if it has another form."""
    return next((found for names in MAPS if (found := maps_of(module, *names))), {})
