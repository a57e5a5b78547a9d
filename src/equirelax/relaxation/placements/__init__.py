"""Placements: which modules get which residual; one file per architecture."""

from equirelax.relaxation.placements import (  # noqa: F401  (each registers its placements)
    egnn,
    egno,
    egno_layers,
    equiformer,
    schnet,
    segnn,
)
from equirelax.relaxation.placements.coordinates import CoordinateBlocks
from equirelax.relaxation.placements.declarations import Constant, Declaration, Linear
from equirelax.relaxation.placements.egnn import EGNNBlocks
from equirelax.relaxation.placements.egno import EGNOStreams
from equirelax.relaxation.placements.egno_layers import EGNOLayers
from equirelax.relaxation.placements.equiformer import EquiformerBlocks
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
from equirelax.relaxation.placements.segnn import SEGNNUpdates

__all__ = [
    "Constant",
    "CoordinateBlocks",
    "Declaration",
    "EGNNBlocks",
    "EGNOLayers",
    "EGNOStreams",
    "EquiformerBlocks",
    "Layers",
    "Linear",
    "Placed",
    "Placement",
    "SEGNNUpdates",
    "SchNetStream",
    "Survey",
    "get",
    "names",
    "register_placement",
]
