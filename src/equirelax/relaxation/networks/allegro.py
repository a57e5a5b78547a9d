"""Allegro (Musaelian et al., arXiv 2204.05249) in the authors' package: the tensor products of its edge features.

Layer k turns the features V of edge ij, channel by channel, into the tensor product of V with the sum of its neighbours'
embeddings. Allegro keeps them as (edges, channels, components), with one copy of every irrep per channel, so its products are
not e3nn's. Their residuals are dense, from all components of all channels of V to all of the product's.

The other maps of the network act on scalars. Nothing can be folded, since no channel of the second factor is constant.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from equirelax.relaxation.layers.channels import AxisSite, Layout
from equirelax.relaxation.layers.e3nn import broken_group, has_irreps
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.sites import Site, first_parameter
from equirelax.symmetry import Representation, from_irreps


@register_network
class Allegro(Network):
    """The module of all layers, with the products in its list `tps`."""

    name = "Allegro"
    classes = ("Allegro_Module",)

    def matches(self, module: nn.Module) -> bool:
        """Whether `tps` holds products of one copy of every irrep, with a number of channels `mul`."""
        products = getattr(module, "tps", None)
        return isinstance(products, nn.ModuleList) and len(products) > 0 and all(map(_is_strided, products))

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """The site of every product. The last one's output is invariant."""
        network: Any = module
        prefix = f"{path}.tps" if path else "tps"
        return tuple(_site(f"{prefix}.{i}", product) for i, product in enumerate(network.tps))


def _is_strided(product: nn.Module) -> bool:
    """Whether a module is a tensor product of features (rows, mul, components of one copy of every irrep)."""
    given: Any = product
    return (
        has_irreps(product, "irreps_in1", "irreps_out")
        and isinstance(getattr(product, "mul", None), int)
        and all(copies == 1 for copies, _ in (*given.irreps_in1, *given.irreps_out))
    )


def _site(path: str, product: Any) -> Site:
    ends = [from_irreps(irreps) for irreps in (product.irreps_in1, product.irreps_out)]
    sizes = [tuple(copies * block.dim for copies, block in rep.blocks) for rep in ends]
    layouts = [
        Layout(product.mul, -2, (-1,), blocks, rep.dim) for rep, blocks in zip(ends, sizes, strict=True)
    ]
    in_rep, out_rep = (
        Representation(rep.group, [(product.mul * copies, block) for copies, block in rep.blocks])
        for rep in ends
    )
    return AxisSite(
        path,
        in_rep,
        out_rep,
        relaxes=broken_group(product.irreps_in1, product.irreps_out),
        in_layout=layouts[0],
        out_layout=layouts[1],
        name=first_parameter(product),
    )
