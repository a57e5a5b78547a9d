"""Placements, which choose the modules to relax and their residuals."""

from equirelax.relaxation.placements.blocks import Blocks
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
from equirelax.relaxation.placements.streams import Streams

__all__ = [
    "Blocks",
    "Constant",
    "Declaration",
    "Layers",
    "Linear",
    "Placed",
    "Placement",
    "Streams",
    "Survey",
    "get",
    "names",
    "register_placement",
]
