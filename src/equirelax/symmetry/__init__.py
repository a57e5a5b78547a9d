"""Groups, their representations and Lie algebras, sampling, and equivariant maps.

Needs only torch, and e3nn for irreps of degree above 1.
"""

from equirelax.symmetry.blocks import Block
from equirelax.symmetry.cartesian import cartesian
from equirelax.symmetry.constructors import custom, positions, pseudovector, regular, sign, trivial, vector
from equirelax.symmetry.fields import GridField
from equirelax.symmetry.finite import Cyclic, Dihedral, Symmetric
from equirelax.symmetry.given import as_representation
from equirelax.symmetry.group import Group
from equirelax.symmetry.intertwiners import equivariant_projection, hom_basis
from equirelax.symmetry.irreps import from_irreps
from equirelax.symmetry.lie import SE, SO, E, Lorentz, O, Scaling
from equirelax.symmetry.matrix_group import MatrixGroup
from equirelax.symmetry.on import On, TensorAction
from equirelax.symmetry.representation import Representation

__all__ = [
    "SE",
    "SO",
    "Block",
    "Cyclic",
    "Dihedral",
    "E",
    "GridField",
    "Group",
    "Lorentz",
    "MatrixGroup",
    "O",
    "On",
    "Representation",
    "Scaling",
    "Symmetric",
    "TensorAction",
    "as_representation",
    "cartesian",
    "custom",
    "equivariant_projection",
    "from_irreps",
    "hom_basis",
    "positions",
    "pseudovector",
    "regular",
    "sign",
    "trivial",
    "vector",
]
