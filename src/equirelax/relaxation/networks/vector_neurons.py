"""Vector neurons (Deng et al., arXiv 2104.12229) in the authors' own code: the maps of features and of directions.

Features x are (batch, channels, 3, ...), and every map is a `torch.nn.Linear` without bias, called on `x.transpose(1, -1)`:
(batch, 3, channels), (batch, points, 3, channels) or (batch, neighbours, 3, points, channels). So channels are on the last
axis. Vectors are on axis 1 of a tensor with three axes, and on axis 2 of one with four or five.

CR and ACE relax all maps but `vn_lin`, which makes the frame of `VNStdFeature`. The map of `VNMaxPool` is also left out, because
it chooses points by a largest entry, through which no gradient passes.
"""

from __future__ import annotations

from torch import nn

from equirelax.relaxation.layers.channels import channel_site
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.sites import Site
from equirelax.symmetry import O, On, vector

MAPS = ("map_to_feat", "map_to_dir")


@register_network
class VectorNeurons(Network):
    """The blocks of the authors' code. Networks of them have no common class."""

    name = "vector-neuron network"
    classes = (
        "VNLinear",
        "VNLeakyReLU",
        "VNLinearLeakyReLU",
        "VNLinearAndLeakyReLU",
        "VNStdFeature",
    )

    def matches(self, module: nn.Module) -> bool:
        """Whether the module holds such maps, all of them without bias."""
        found = _maps(module)
        return bool(found) and all(linear.bias is None for linear in found.values())

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """The site of every map."""
        prefix = f"{path}." if path else ""
        action = On(vector(O(3)), -2)
        ranks = ((3, (1,)), (4, (2,)), (5, (2,)))
        return tuple(
            channel_site(f"{prefix}{name}", linear, action, -1, ranks=ranks)
            for name, linear in _maps(module).items()
        )


def _maps(module: nn.Module) -> dict[str, nn.Linear]:
    """The maps of features and directions inside a module, by path."""
    return {
        path: inner
        for path, inner in module.named_modules()
        if path.rpartition(".")[2] in MAPS and isinstance(inner, nn.Linear)
    }
