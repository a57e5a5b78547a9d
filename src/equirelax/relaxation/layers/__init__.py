"""Layer families: one file each, registered by a decorator."""

from equirelax.relaxation.layers import channels, e3nn, escnn, fiber, plain, planar, vector  # noqa: F401  (each registers its families)
from equirelax.relaxation.layers.family import Fold, LayerFamily, Skip, families, get_family, register

__all__ = ["Fold", "LayerFamily", "Skip", "families", "get_family", "register"]
