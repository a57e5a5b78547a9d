"""Linear maps over channels of vectors or tensors inside a published network, by name."""

from __future__ import annotations

from torch import nn

from equirelax.relaxation.layers.channels import channel_site
from equirelax.relaxation.sites import Site, join
from equirelax.symmetry import O, On, vector


def maps_of(module: nn.Module, *names: str, path: str = "", times: int | None = None) -> dict[str, nn.Linear]:
    """The `torch.nn.Linear` of these names, keyed by their paths behind `path`.

    Args:
        times: How many times as many channels each gives as it takes; None: any number.

    Returns:
        All of them; none where one is missing, is something else, has a bias, or has other numbers of channels.
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
    """The sites of maps that are called with tensors (..., components, channels).

    Args:
        path: Path of the module that holds the maps.
        maps: path within that module -> map.
        action: How the components transform; None: as vectors of O(3).
    """
    action = On(vector(O(3)), -2) if action is None else action
    return tuple(channel_site(join(path, name), linear, action, -1) for name, linear in maps.items())
