"""VN-Transformer (Assaad et al., arXiv 2206.04176) in the package VN-transformer on PyPI: every `VNLinear`.

Features are (batch, points, channels, 3), and the weight (out, in) acts on their last axis but one. A network with additional
invariant features has them after the three coordinates, on the same axis. Maps within `VNReLU` and `VNWeightedPool` are
parameters and not modules, so they are left alone.

With `bias_epsilon` a map has a bias, by which the authors give up equivariance on purpose. Such networks are not relaxed, since
there is nothing to project back to.
"""

from __future__ import annotations

from torch import nn

from equirelax.relaxation.layers.channels import channel_site
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.sites import Site, join
from equirelax.symmetry import O, On, trivial, vector

MAP = "VNLinear"


@register_network
class VNTransformer(Network):
    """A network or encoder, which gives the number of coordinates, or a single map with three."""

    name = "VN-Transformer"
    classes = ("VNTransformer", "VNTransformerEncoder", MAP)

    def matches(self, module: nn.Module) -> bool:
        """Whether it holds such maps, all of them without bias, and at least three coordinates."""
        maps = _maps(module)
        return bool(maps) and all(_biasless(each) for each in maps.values()) and _coordinates(module) >= 3

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """One site for every map."""
        group, further = O(3), _coordinates(module) - 3
        rep = vector(group) + trivial(group, further) if further else vector(group)
        return tuple(
            channel_site(join(path, name), each, On(rep, -1), -2) for name, each in _maps(module).items()
        )


def _maps(module: nn.Module) -> dict[str, nn.Module]:
    """The maps within a module by path, or the module itself; a map has the attribute `bias_epsilon`."""
    return {
        path: each
        for path, each in module.named_modules()
        if type(each).__name__ == MAP and hasattr(each, "bias_epsilon")
    }


def _biasless(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 2 and getattr(module, "bias", None) is None


def _coordinates(module: nn.Module) -> int:
    """The size of the last axis, from the whole network or the encoder, or 3; 0 if it is not a number."""
    size = getattr(module, "dim_coor_total", getattr(module, "dim_coor", 3))
    return size if isinstance(size, int) else 0
