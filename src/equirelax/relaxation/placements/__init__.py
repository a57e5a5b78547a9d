"""Placements: which modules get which residual."""

from equirelax.relaxation.placements.coordinates import CoordinateBlocks
from equirelax.relaxation.placements.declarations import Constant, Declaration, Linear
from equirelax.relaxation.placements.layers import Layers
from equirelax.relaxation.placements.placement import (
    Placed,
    Placement,
    Survey,
    get,
    names,
    register_placement,
)
from equirelax.relaxation.placements.schnet import SchNetStream

__all__ = [
    "Constant",
    "CoordinateBlocks",
    "Declaration",
    "Layers",
    "Linear",
    "Placed",
    "Placement",
    "SchNetStream",
    "Survey",
    "get",
    "names",
    "register_placement",
]
