"""Muon for equivariant networks, which finds the matrices in their layers' weights."""

from equirelax.optim.matrices import matrices_of
from equirelax.optim.muon import Muon
from equirelax.relaxation.matrices import Matrices

__all__ = ["Matrices", "Muon", "matrices_of"]
