"""Find linear maps over channels of vectors or tensors inside a published network by name."""

from __future__ import annotations

from torch import nn

from equirelax.relaxation.layers.channels import channel_site
from equirelax.relaxation.sites import Site, join
from equirelax.symmetry import O, On, vector


def maps_of(module: nn.Module, *names: str, path: str = "", times: int | None = None) -> dict[str, nn.Linear]:
    """The `torch.nn.Linear` maps with these names, by their paths below `path`.

    Args:
        module: The module that holds the maps.
        names: The names of the maps.
        path: Path of the module.
        times: The ratio of each map's output channels to its input channels; None: any.

    Returns:
        All maps, or none if one is missing, has another type, a bias, or other numbers of channels.
    """
    found: dict[str, nn.Linear] = {}
    for name in names:
        linear = getattr(module, name, None)
        if not isinstance(linear, nn.Linear) or linear.bias is not None:
            return {}
        if times is not None and linear.out_features != times * linear.in_features:
            return {}
        found[join(path, name)] = linear
    return found


def map_sites(path: str, maps: dict[str, nn.Linear], action: On | None = None) -> tuple[Site, ...]:
    """Make the sites of maps that are called with tensors (..., components, channels).

    Args:
        path: Path of the module that holds the maps.
        maps: path within that module -> map.
        action: The action on the components; None: as vectors of O(3).
    """
    action = On(vector(O(3)), -2) if action is None else action
    return tuple(channel_site(join(path, name), linear, action, -1) for name, linear in maps.items())
