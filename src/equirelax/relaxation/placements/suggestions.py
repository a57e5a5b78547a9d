"""Where nothing is recognised: the lines that a user could write for the modules that are there."""

from __future__ import annotations

from torch import nn

from equirelax.relaxation.sites import parameters_of

_COORDINATES = ("coors", "coord", "coords", "coordinates", "pos", "positions", "x")
_FEATURES = ("feats", "features", "h", "node_feats", "node_features", "s", "x")
_MOST = 6


def suggestions(modules: list[tuple[str, nn.Module]]) -> tuple[str, ...]:
    """Lines of Python, each with a comment that says of what it would be true; a module's name is written once.

    Linear maps without bias may act on vectors, convolutions on feature fields, and modules that are called with features
    and coordinates may be relaxed as blocks.

    Args:
        modules: (path, module) of every module of the model.
    """
    lines: dict[str, None] = {}
    for path, module in modules:
        pattern = f"*.{path.rpartition('.')[2]}" if "." in path else path
        if pattern.rpartition(".")[2].isdecimal():  # a number in a list or Sequential names nothing
            pattern = path
        if isinstance(module, nn.Linear) and module.bias is None and path:
            lines[
                f'Linear("{pattern}", On("1x1o", axis=-2), channel_axis=-1)  # if it maps vectors (..., 3, channels)'
            ] = None
        elif isinstance(module, (nn.Conv2d, nn.Conv3d)) and path:
            sizes = f"{module.in_channels} and {module.out_channels} channels"
            lines[
                f'Linear("{pattern}", GridField(in_rep), GridField(out_rep))  # with the representations of {sizes}'
            ] = None
        elif block := _block(module):
            lines[block] = None
    return tuple(lines)[:_MOST]


def _block(module: nn.Module) -> str:
    """A placement for a module that is called with features and coordinates; empty where it is not."""
    names = [parameter.name for parameter in parameters_of(module)]
    coordinates = next((name for name in _COORDINATES if name in names), None)
    features = next((name for name in _FEATURES if name in names and name != coordinates), None)
    if coordinates is None or features is None:
        return ""
    where = f"features=({names.index(features)}, {features!r}), coordinates=({names.index(coordinates)}, {coordinates!r})"
    return f'CoordinateBlocks("{type(module).__name__}", channels=..., {where})  # if it returns both; a placement of its own'
