"""Relaxation: residual branches, their strengths, their placement in a model, and their removal."""

from equirelax.relaxation.across import AheadSite, CapturedSite
from equirelax.relaxation.attach import relax, relaxation_of
from equirelax.relaxation.blocks import Adds, Reads, block_sites
from equirelax.relaxation.checkpoint import (
    load,
    load_relaxation_state,
    read,
    read_strict,
    relaxation_state,
    save,
)
from equirelax.relaxation.entries import Entry
from equirelax.relaxation.graphs import Graphs, Positions, group_means
from equirelax.relaxation.kernels import BasisBlock, BasisKernels, GridKernels, KernelSymmetry
from equirelax.relaxation.kinds import (
    MLP,
    Convolution,
    Dense,
    LowRank,
    ResidualKind,
    ResidualMap,
)
from equirelax.relaxation.layers import Fold, LayerFamily, Skip, register
from equirelax.relaxation.networks import Network, register_network
from equirelax.relaxation.placements import (
    Blocks,
    Constant,
    Layers,
    Linear,
    Placed,
    Placement,
    Streams,
    Survey,
)
from equirelax.relaxation.position_streams import position_stream
from equirelax.relaxation.products import ProductSite
from equirelax.relaxation.projected import ProjectionReport
from equirelax.relaxation.projection import cannot_fold, project
from equirelax.relaxation.relaxation import Relaxation
from equirelax.relaxation.residual import Residual
from equirelax.relaxation.sites import (
    AddTo,
    Argument,
    Arguments,
    BlockSite,
    FirstInput,
    GridSite,
    Reader,
    RowSite,
    Site,
    Writer,
    misfit,
)
from equirelax.relaxation.spec import spec
from equirelax.relaxation.streams import StreamResidual, StreamSite
from equirelax.relaxation.summary import Memory, Summary

# These need the imports above.
from equirelax.relaxation import kinds, regularizers  # isort: skip

__all__ = [
    "MLP",
    "AddTo",
    "Adds",
    "AheadSite",
    "Argument",
    "Arguments",
    "BasisBlock",
    "BasisKernels",
    "BlockSite",
    "Blocks",
    "CapturedSite",
    "Constant",
    "Convolution",
    "Dense",
    "Entry",
    "FirstInput",
    "Fold",
    "Graphs",
    "GridKernels",
    "GridSite",
    "KernelSymmetry",
    "LayerFamily",
    "Layers",
    "Linear",
    "LowRank",
    "Memory",
    "Network",
    "Placed",
    "Placement",
    "Positions",
    "ProductSite",
    "ProjectionReport",
    "Reader",
    "Reads",
    "Relaxation",
    "Residual",
    "ResidualKind",
    "ResidualMap",
    "RowSite",
    "Site",
    "Skip",
    "StreamResidual",
    "StreamSite",
    "Streams",
    "Summary",
    "Survey",
    "Writer",
    "block_sites",
    "cannot_fold",
    "group_means",
    "kinds",
    "load",
    "load_relaxation_state",
    "misfit",
    "position_stream",
    "project",
    "read",
    "read_strict",
    "register",
    "register_network",
    "regularizers",
    "relax",
    "relaxation_of",
    "relaxation_state",
    "save",
    "spec",
]
