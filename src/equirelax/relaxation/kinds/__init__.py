"""Kinds of residuals: the maps that residuals consist of, one file each, registered by name.

To add a kind, add one line here.
"""

from equirelax.relaxation.kinds.convolution import Convolution as Convolution
from equirelax.relaxation.kinds.dense import Dense as Dense
from equirelax.relaxation.kinds.equivariant_dense import EquivariantDense as EquivariantDense
from equirelax.relaxation.kinds.grouped import Grouped as Grouped
from equirelax.relaxation.kinds.kind import LinearMap as LinearMap
from equirelax.relaxation.kinds.kind import ResidualKind as ResidualKind
from equirelax.relaxation.kinds.kind import ResidualMap as ResidualMap
from equirelax.relaxation.kinds.kind import get as get
from equirelax.relaxation.kinds.kind import names as names
from equirelax.relaxation.kinds.kind import register as register
from equirelax.relaxation.kinds.low_rank import LowRank as LowRank
from equirelax.relaxation.kinds.mlp import MLP as MLP
from equirelax.relaxation.kinds.normed_perceptron import NormedPerceptron as NormedPerceptron
from equirelax.relaxation.kinds.stream import StreamStep as StreamStep
