"""TensorNet (Simeon and De Fabritiis, arXiv 2306.06482) of TorchMD-NET and matgl, TensorNet2: maps over channels of tensors.

Every X (atoms, 3, 3, channels) is the sum of a multiple of the identity I, an antisymmetric A and a symmetric traceless S, and
`linears_tensor` holds a matrix over channels for each of these in turn: three in the embedding, six in an interaction. Those of A
and S are relaxed, in the embedding and in every interaction. For I, which is an invariant, there is nothing to relax.

A map is called with features in one of two forms:

- (atoms, 3, 3, channels), even if the network itself has (atoms, channels, 3, 3). The residual maps all nine
  components, so that the term added to A need not be antisymmetric.
- (atoms, 3, channels) and (atoms, 5, channels), with the Warp kernels of TorchMD-NET 3, which the attribute `opt` of its layers
  indicates. These are the components above the diagonal, and those of S without the last one of the diagonal.

Under reflections X goes to R X^T R^T, so that A is a vector (section 3.1). Networks built for SO(3) are not equivariant to these.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equirelax.relaxation.layers.channels import channel_site
from equirelax.relaxation.networks.maps import map_sites, maps_of
from equirelax.relaxation.networks.network import Network, register_network
from equirelax.relaxation.sites import Site, join
from equirelax.symmetry import SO, Group, O, On, cartesian, vector


@register_network
class TensorNet(Network):
    """`tensor_embedding` and `layers`, each with `linears_tensor`."""

    name = "TensorNet"
    classes = ("TensorNet", "TensorNet2")

    def matches(self, module: nn.Module) -> bool:
        """Whether embedding and interactions have three and six maps without bias, and the group is known."""
        return getattr(module, "equivariance_invariance_group", None) in ("O(3)", "SO(3)") and bool(
            _maps(module)
        )

    def sites(self, path: str, module: nn.Module) -> tuple[Site, ...]:
        """The sites of A and S, in the embedding and in every interaction."""
        group = O(3) if getattr(module, "equivariance_invariance_group", "") == "O(3)" else SO(3)
        packed = bool(getattr(module, "opt", False))
        bases = (_antisymmetric(), _symmetric())
        found: list[Site] = []
        for name, linear in _maps(module).items():
            part = int(name.rpartition(".")[2]) % 3  # I, A or S
            if part and packed:
                found += map_sites(path, {name: linear}, On(cartesian(group, bases[part - 1]), -2))
            elif part:
                found.append(_whole(join(path, name), linear, group))
        return tuple(found)


def _whole(path: str, linear: nn.Linear, group: Group) -> Site:
    """Make the site of a map of tensors on two axes."""
    return channel_site(path, linear, On(vector(group), (-3, -2)), -1, parts=cartesian(group))


def _maps(module: nn.Module) -> dict[str, nn.Linear]:
    """All maps of tensors; none if one of the blocks has another form."""
    layers = getattr(module, "layers", None)
    blocks: dict[str, tuple[nn.Module | None, int]] = {
        "tensor_embedding": (getattr(module, "tensor_embedding", None), 3)
    }
    if isinstance(layers, nn.ModuleList):
        blocks.update({f"layers.{i}": (layer, 6) for i, layer in enumerate(layers)})
    maps: dict[str, nn.Linear] = {}
    for path, (block, count) in blocks.items():
        linears = getattr(block, "linears_tensor", None)
        if not isinstance(linears, nn.ModuleList) or len(linears) != count:
            return {}
        found = maps_of(linears, *map(str, range(count)), path=join(path, "linears_tensor"), times=1)
        if not found:
            return {}
        maps.update(found)
    return maps


def _antisymmetric() -> Tensor:
    """The components X_01, X_02, X_12, as matrices (3, 3, 3)."""
    basis = torch.zeros(3, 3, 3)
    for k, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        basis[k, i, j], basis[k, j, i] = 1.0, -1.0
    return basis


def _symmetric() -> Tensor:
    """The components X_00, X_01, X_02, X_11, X_12, as matrices (5, 3, 3), with X_22 = -X_00 - X_11."""
    basis = torch.zeros(5, 3, 3)
    for k, (i, j) in enumerate(((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))):
        basis[k, i, j] = basis[k, j, i] = 1.0
        if i == j:
            basis[k, 2, 2] = -1.0
    return basis
