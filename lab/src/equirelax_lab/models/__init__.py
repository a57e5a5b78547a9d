"""The networks, independent of relaxation. Those that need e3nn import it when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from equirelax_lab.models.dgcnn import DGCNN
from equirelax_lab.models.egnn import EGNN, EGNNLayer
from equirelax_lab.models.egno import EGNO, EGNOLayer
from equirelax_lab.models.forces import ConservativeForces
from equirelax_lab.models.group_conv import FieldBatchNorm, GroupConv2d, GroupPool
from equirelax_lab.models.plane_classifiers import PlainClassifier, PlaneClassifier
from equirelax_lab.models.planes import PlaneConv, PlaneE2CNN, PlaneLift, PlaneMLP, PlaneRPP, PlaneRSteer
from equirelax_lab.models.pointnet import PointNet
from equirelax_lab.models.schnet import pyg_schnet
from equirelax_lab.models.transformer import Transformer
from equirelax_lab.models.vn_dgcnn import VNDGCNN
from equirelax_lab.models.vn_pointnet import VNPointNet

if TYPE_CHECKING:
    from equirelax_lab.models.atom_transformer import AtomTransformer
    from equirelax_lab.models.equiformer import Equiformer
    from equirelax_lab.models.nequip import NequIP
    from equirelax_lab.models.se3_transformer import SE3Transformer
    from equirelax_lab.models.segnn import SEGNN, SEGNNLayer
    from equirelax_lab.models.segnn_molecules import MolecularSEGNN
    from equirelax_lab.models.tensor_product import TensorProduct

__all__ = [
    "DGCNN",
    "EGNN",
    "EGNO",
    "SEGNN",
    "VNDGCNN",
    "AtomTransformer",
    "ConservativeForces",
    "EGNNLayer",
    "EGNOLayer",
    "Equiformer",
    "FieldBatchNorm",
    "GroupConv2d",
    "GroupPool",
    "MolecularSEGNN",
    "NequIP",
    "PlainClassifier",
    "PlaneClassifier",
    "PlaneConv",
    "PlaneE2CNN",
    "PlaneLift",
    "PlaneMLP",
    "PlaneRPP",
    "PlaneRSteer",
    "PointNet",
    "SE3Transformer",
    "SEGNNLayer",
    "TensorProduct",
    "Transformer",
    "VNPointNet",
    "pyg_schnet",
]


def __getattr__(name: str) -> Any:
    if name in ("SEGNN", "SEGNNLayer"):
        from equirelax_lab.models import segnn

        return getattr(segnn, name)
    if name == "MolecularSEGNN":
        from equirelax_lab.models.segnn_molecules import MolecularSEGNN

        return MolecularSEGNN
    if name == "AtomTransformer":
        from equirelax_lab.models.atom_transformer import AtomTransformer

        return AtomTransformer
    if name == "Equiformer":
        from equirelax_lab.models.equiformer import Equiformer

        return Equiformer
    if name == "NequIP":
        from equirelax_lab.models.nequip import NequIP

        return NequIP
    if name == "SE3Transformer":
        from equirelax_lab.models.se3_transformer import SE3Transformer

        return SE3Transformer
    if name == "TensorProduct":
        from equirelax_lab.models.tensor_product import TensorProduct

        return TensorProduct
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
