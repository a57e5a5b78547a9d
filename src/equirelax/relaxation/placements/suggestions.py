"""Suggestions for a model without known modules: a line of Python for every kind of module that could be relaxed."""

from __future__ import annotations

import re
from collections import Counter

from torch import nn

from equirelax.relaxation.sites import parameters_of

IMPORTED = {
    "equirelax.relaxation": ("Adds", "Blocks", "Layers", "Linear", "Reads", "Streams"),
    "equirelax.symmetry": ("GridField", "On"),
}
"""The names that the lines may use, and the packages that have them."""
COORDINATES = ("coors", "coord", "coords", "coordinates", "pos", "positions", "xyz", "x")
FEATURES = ("feats", "features", "h", "node_feats", "node_features", "s", "x")
MOST = 6


def suggestions(modules: list[tuple[str, nn.Module]]) -> tuple[str, ...]:
    """Suggest lines of Python, each with a comment that says when it is right. Repeated module names get one line.

    Linear maps may act on vectors or, with a bias, between features of any representation, and convolutions on feature fields.
    Modules that are called with features and coordinates may be relaxed as blocks. A network that is called with
    only positions may be relaxed by a stream over its blocks.

    Args:
        modules: (path, module) of every module of the model.

    Returns:
        The lines, after the imports that they need.
    """
    found: dict[str, int] = {}
    for path, module in modules:
        line, rank = _line(path, module)
        if line:
            found[line] = min(rank, found.get(line, rank))
    lines = sorted(found, key=lambda line: found[line])[:MOST]
    return (*_imports(lines), *lines)


def _imports(lines: list[str]) -> tuple[str, ...]:
    """The imports that the lines need."""
    used = {
        room: [name for name in names if any(re.search(rf"\b{name}\(", line) for line in lines)]
        for room, names in IMPORTED.items()
    }
    return tuple(f"from {room} import {', '.join(names)}" for room, names in used.items() if names)


def _line(path: str, module: nn.Module) -> tuple[str, int]:
    """The line for one module, empty if there is none, and its position in the order of the lines."""
    pattern = f"*.{path.rpartition('.')[2]}" if "." in path else path
    if pattern.rpartition(".")[2].isdecimal():  # a number in a list or Sequential is not a name
        pattern = path
    if isinstance(module, nn.Linear) and path:
        if module.bias is None:
            declared = f'Linear("{pattern}", On("1x1o", axis=-2), channel_axis=-1)'
            return _declare(declared, "if it maps vectors (..., 3, channels)"), 1
        sizes = f"of {module.in_features} and {module.out_features} features"
        return _declare(f'Linear("{pattern}", in_rep, out_rep)', f"with the representations {sizes}"), 3
    if isinstance(module, nn.Conv2d) and path:
        sizes = f"of {module.in_channels} and {module.out_channels} channels"
        declared = f'Linear("{pattern}", GridField(in_rep), GridField(out_rep))'
        return _declare(declared, f"with the representations {sizes}"), 2
    if path and _is_a_matrix(module):
        declared = f'Linear("{type(module).__name__}", On("1x1o", axis=-1), channel_axis=-2)'
        return _declare(declared, "if its matrix mixes the channels of vectors (..., channels, 3)"), 1
    return _block(module) or _stream(path, module), 0


def _is_a_matrix(module: nn.Module) -> bool:
    """Whether a module from outside PyTorch holds one matrix, called weight, and nothing else."""
    own = dict(module.named_parameters())
    return (
        list(own) == ["weight"]
        and own["weight"].dim() == 2
        and not type(module).__module__.startswith("torch.")
    )


def _declare(declaration: str, when: str) -> str:
    return f"equirelax.relax(network, Layers(declare={declaration}))  # {when}"


def _arguments(module: nn.Module) -> tuple[str | None, str | None]:
    """The names of a module's arguments with features and with coordinates."""
    names = [parameter.name for parameter in parameters_of(module)]
    coordinates = next((name for name in COORDINATES if name in names), None)
    return next((name for name in FEATURES if name in names and name != coordinates), None), coordinates


def _block(module: nn.Module) -> str:
    """A placement for a module that is called with features and coordinates; empty for other modules."""
    features, coordinates = _arguments(module)
    if features is None or coordinates is None:
        return ""
    reads = f'(Reads("{features}", "Nx0e"), Reads("{coordinates}", "1x1o", centred=True))'
    adds = '(Adds(0, "Nx0e"), Adds(1, "1x1o"))'
    named = {parameter.name for parameter in parameters_of(module)}
    mask = ', mask="mask"' if "mask" in named else ""  # means must leave out padded nodes
    return (
        f'equirelax.relax(network, Blocks("{type(module).__name__}", reads={reads}, adds={adds}{mask}))'
        "  # if it returns both, with N features"
    )


def _stream(path: str, module: nn.Module) -> str:
    """A placement for a network that is called with positions and has a list of blocks; empty for other modules."""
    features, coordinates = _arguments(module)
    if coordinates in (None, "x") or features is not None:
        return ""
    blocks = Counter(
        type(block).__name__
        for children in module.children()
        if isinstance(children, nn.ModuleList)
        for block in children
        if any(True for _ in block.parameters())
    )
    if not blocks:
        return ""
    source = f', source="{path}"' if path else ""
    return (
        f'equirelax.relax(network, Streams("{blocks.most_common(1)[0][0]}", N, "{coordinates}"{source}))'
        "  # if its blocks give invariant features (nodes, N)"
    )
