"""Kinds of residuals: what they are made of, one file each, registered by name."""

from equirelax.relaxation.kinds.convolution import Convolution
from equirelax.relaxation.kinds.dense import Dense
from equirelax.relaxation.kinds.equivariant_dense import EquivariantDense
from equirelax.relaxation.kinds.grouped import Grouped
from equirelax.relaxation.kinds.kind import LinearMap, ResidualKind, ResidualMap, get, names, register
from equirelax.relaxation.kinds.low_rank import LowRank
from equirelax.relaxation.kinds.mlp import MLP
from equirelax.relaxation.kinds.normed_perceptron import NormedPerceptron
from equirelax.relaxation.kinds.stream import StreamStep

__all__ = [
    "MLP",
    "Convolution",
    "Dense",
    "EquivariantDense",
    "Grouped",
    "LinearMap",
    "LowRank",
    "NormedPerceptron",
    "ResidualKind",
    "ResidualMap",
    "StreamStep",
    "get",
    "names",
    "register",
]
