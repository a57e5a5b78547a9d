"""VN-Transformer (Assaad et al., arXiv 2206.04176), the code of VN-transformer on PyPI: every `VNLinear`.

Features are (batch, points, channels, 3), and the weight (out, in) acts on their last axis but one. A network with further
invariant features has these behind the three coordinates, on the same axis. Maps within `VNReLU` and `VNWeightedPool` are
parameters and no modules, so that they are left as they are.

With `bias_epsilon` a map has a bias, by which the authors give up equivariance on purpose: such networks are not relaxed, as
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
    """A network or encoder, which tells the number of coordinates; or a map alone, of three."""

    name = "VN-Transformer"
    classes = ("VNTransformer", "VNTransformerEncoder", MAP)

    def matches(self, module: nn.Module) -> bool:
        """Whether it holds such maps, all of them without bias, and three coordinates or more."""
        maps = _maps(module)
        return bool(maps) and all(_biasless(each) for each in maps.values()) and _coordinates(module) >= 3

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """One for every map."""
        group, further = O(3), _coordinates(module) - 3
        rep = vector(group) + trivial(group, further) if further else vector(group)
        return tuple(
            channel_site(join(path, name), each, On(rep, -1), -2) for name, each in _maps(module).items()
        )


def _maps(module: nn.Module) -> dict[str, nn.Module]:
    """Paths and maps within a module, or the module itself; a map tells its `bias_epsilon`."""
    return {
        path: each
        for path, each in module.named_modules()
        if type(each).__name__ == MAP and hasattr(each, "bias_epsilon")
    }


def _biasless(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 2 and getattr(module, "bias", None) is None


def _coordinates(module: nn.Module) -> int:
    """Size of the last axis: of the whole network, of the encoder, or 3; 0 where it is no number."""
    size = getattr(module, "dim_coor_total", getattr(module, "dim_coor", 3))
    return size if isinstance(size, int) else 0
