"""SEGNN (Brandstetter et al., arXiv 2110.02905): the node update of every layer, as CR and ACE relax it.

    u = gate(update_1([x, messages], a)) + gamma_1 f_1([x, messages])
    x' = x + update_2(u, a) + gamma_2 f_2(u)

The first residual comes after the gate, so it maps the update's 2d input features to d. The second update reads the
sum, and so does its residual. The node attributes' 0e component is 1 by construction of the network, so that dense
residuals can be folded into the second update. The first ones cannot be folded, since a gate comes in between.

Two implementations are known. In `equirelax_lab.models` the layers share one gate, so the first residual is added to the input
of the second update before that is called. In the authors' own code the gate is a part of `update_layer_1`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from equirelax.errors import PlacementError
from equirelax.relaxation.across import AheadSite
from equirelax.relaxation.layers import Skip, get_family
from equirelax.relaxation.layers.e3nn import broken_group, product_of
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.products import ProductSite
from equirelax.relaxation.sites import RowSite, Site, first_parameter
from equirelax.symmetry import from_irreps

# First and second update of a layer, and whether the gate is outside the first.
UPDATES = (("update_1", "update_2", True), ("update_layer_1", "update_layer_2", False))


@register_network
class SEGNNNetwork(Network):
    """Both implementations of SEGNN: `layers`, each with two tensor products that update the nodes."""

    name = "SEGNN"
    classes = ("SEGNN", "MolecularSEGNN")

    def matches(self, module: nn.Module) -> bool:
        """Whether every one of its `layers` has the two updates of one implementation."""
        layers = getattr(module, "layers", None)
        return isinstance(layers, nn.ModuleList) and len(layers) > 0 and all(_updates(m) for m in layers)

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """Two sites for every layer."""
        network: Any = module
        prefix = f"{path}.layers" if path else "layers"
        found: list[Site] = []
        for i, layer in enumerate(network.layers):
            first, second, shared = _updates(layer) or UPDATES[0]
            found.append(_behind_the_gate(f"{prefix}.{i}", layer, first, second, shared))
            found.append(_second_update(f"{prefix}.{i}.{second}", getattr(layer, second)))
        return tuple(found)


def _updates(layer: nn.Module) -> tuple[str, str, bool] | None:
    """The names of a layer's two updates; None if it does not have them."""
    for first, second, shared in UPDATES:
        one, two = getattr(layer, first, None), getattr(layer, second, None)
        if not isinstance(one, nn.Module) or not isinstance(two, nn.Module) or product_of(two) is None:
            continue
        gated = isinstance(getattr(layer, "gate", None), nn.Module) and product_of(one) is not None
        if (
            gated
            if shared
            else isinstance(getattr(one, "gate", None), nn.Module) and hasattr(one, "irreps_in1")
        ):
            return first, second, shared
    return None


def _behind_the_gate(path: str, layer: nn.Module, first: str, second: str, shared: bool) -> Site:
    """Make the site from the input of the first update to the input of the second one."""
    one: Any = getattr(layer, first)
    two: Any = getattr(layer, second)
    group = broken_group(one.irreps_in1, two.irreps_in1)
    ends = (from_irreps(one.irreps_in1), from_irreps(two.irreps_in1))
    name = first_parameter(one)
    if shared:
        return AheadSite(f"{path}.{first}", *ends, relaxes=group, name=name, adds_to=f"{path}.{second}")
    return RowSite(f"{path}.{first}", *ends, relaxes=group, name=name)


def _second_update(path: str, module: nn.Module) -> Site:
    site = get_family("e3nn-tensor-product", path).site(path, module)
    if not isinstance(site, ProductSite):
        reason = site.reason if isinstance(site, Skip) else "is not a tensor product"
        raise PlacementError(f"{path} ({type(module).__name__}): the second update of a SEGNN {reason}")
    return site.with_constants(((0, 1.0),))
