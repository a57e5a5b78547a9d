"""Placements and a layer family that fit the laboratory's networks; importing this registers them."""

from equirelax_lab.placements import schnet, spanned  # noqa: F401  (they register placements, and a layer family)
from equirelax_lab.placements.egnn import EGNNBlocks
from equirelax_lab.placements.egno import EGNOStreams
from equirelax_lab.placements.egno_layers import EGNOLayers
from equirelax_lab.placements.equiformer import EquiformerBlocks
from equirelax_lab.placements.segnn import SEGNNUpdates

__all__ = ["EGNNBlocks", "EGNOLayers", "EGNOStreams", "EquiformerBlocks", "SEGNNUpdates"]
