"""Which matrices the parameters of a network hold."""

from __future__ import annotations

from torch import nn

from equirelax.relaxation.layers.family import families
from equirelax.relaxation.layers.matrices import Matrices, by_shape


def matrices_of(model: nn.Module) -> dict[nn.Parameter, tuple[Matrices, ...]]:
    """The matrices in every parameter of a model, relaxed or not; an empty tuple where a parameter holds none.

    Layers of a registered family say it themselves (`LayerFamily.matrices`); for all other parameters `by_shape` does.
    Tables of embeddings are rows to be looked up, and no matrices.
    """
    found: dict[nn.Parameter, tuple[Matrices, ...]] = {}
    for module in model.modules():
        family = next((each for each in families().values() if each.matches(module)), None)
        told = {} if family is None else family.matrices(module)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in found:
                continue
            if isinstance(module, nn.Embedding):
                found[parameter] = ()
            else:
                found[parameter] = told[name] if name in told else by_shape(parameter)
    return found
