"""Find the matrices that the parameters of a network hold."""

from __future__ import annotations

import re

from torch import nn

from equirelax.relaxation.kinds import ResidualMap
from equirelax.relaxation.layers.family import families_of
from equirelax.relaxation.matrices import Matrices, by_shape, without_vectors

NORM = re.compile(r"Norm(\d+d|V\d+)?$")
"""Endings of the names of normalisation layers, such as LayerNorm, BatchNorm2d and EquivariantLayerNormV2."""


def matrices_of(model: nn.Module) -> dict[nn.Parameter, tuple[Matrices, ...]]:
    """Find the matrices in every parameter of a network, relaxed or not.

    For a layer of a registered family, the family knows the matrices (`LayerFamily.matrices`). e3nn's linear maps and tensor
    products keep one matrix for every path, and for every channel of the second input, in one flat vector. escnn's layers keep
    one for every pair of representations. The map of a residual also knows its matrices. Any other parameter is read by its
    shape: two axes are rows and columns; of more axes, as in the kernel of a convolution, the first is rows and the others are
    columns, separately for every group of a convolution with groups.

    Some parameters are not matrices: embedding tables, even tied ones, arrays with a single row or column, and weights that act
    on every channel separately (of norms, of Allegro's tensor products and of MACE's symmetric contractions).

    Args:
        model: The network.

    Returns:
        For every parameter its matrices, or an empty tuple if it holds none.

    Examples:
        >>> import torch
        >>> from equirelax.optim import matrices_of
        >>> layer = torch.nn.Linear(4, 3)
        >>> [each.size for each in matrices_of(layer)[layer.weight]], matrices_of(layer)[layer.bias]
        ([(3, 4)], ())
    """
    found: dict[nn.Parameter, tuple[Matrices, ...]] = {
        table: ()
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for table in module.parameters(recurse=False)
    }
    for module in model.modules():
        found |= dict.fromkeys(_channelwise(module), ())
    for module in model.modules():
        declared: dict[str, tuple[Matrices, ...]] = {}
        if isinstance(module, ResidualMap):
            declared = module.matrices()
        elif family := next(families_of(module), None):
            declared = family.matrices(module)
        elif isinstance(module, nn.modules.conv._ConvNd):
            declared = {"weight": _by_group(module)}
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in found:
                found[parameter] = declared[name] if name in declared else by_shape(parameter)
    return found


def _by_group(convolution: nn.modules.conv._ConvNd) -> tuple[Matrices, ...]:
    """The kernel of every group of a convolution, (channels, other channels x pixels)."""
    weight, groups = convolution.weight, convolution.groups
    return without_vectors([Matrices(0, (groups, len(weight) // groups, weight[0].numel()), (0, 1, 2))])


def _channelwise(module: nn.Module) -> list[nn.Parameter]:
    """The weights that act on every channel separately, although their shape may look like that of a matrix.

    Norms and products are recognised by the names of their classes, and products also by the axis of their channels:
    (channels, paths) in Allegro, (elements, paths, channels) in MACE.
    """
    names = {cls.__name__ for cls in type(module).__mro__}
    if any(NORM.search(name) for name in names):
        return list(module.parameters(recurse=False))
    for name, count, axes, axis in (("Contracter", "mul", 2, 0), ("Contraction", "num_features", 3, -1)):
        if name in names:
            channels = getattr(module, count, None)
            holders = [module, *(child for child in module.children() if isinstance(child, nn.ParameterList))]
            own = [p for holder in holders for p in holder.parameters(recurse=False)]  # not its residual's
            return [p for p in own if p.dim() == axes and p.shape[axis] == channels]
    return []
