"""Data sets: find, make, verify, load and batch them. They know nothing of models."""

from equirelax.data import clouds, corruptions, digits, md17, mocap, modelnet, nbody, qm9, rotmnist, smoke
from equirelax.data.augment import random_rotation
from equirelax.data.fields import FieldSet
from equirelax.data.frames import MolecularFrames
from equirelax.data.graphs import GraphSet
from equirelax.data.mocap import MocapSet
from equirelax.data.modelnet import CloudSet
from equirelax.data.molecules import MoleculeSet
from equirelax.data.nbody import NBody, NBodySet
from equirelax.data.root import DataStatus, data_root, find, status
from equirelax.data.rotmnist import ImageSet
from equirelax.data.samples import Samples

__all__ = [
    "CloudSet",
    "DataStatus",
    "FieldSet",
    "GraphSet",
    "ImageSet",
    "MocapSet",
    "MolecularFrames",
    "MoleculeSet",
    "NBody",
    "NBodySet",
    "Samples",
    "clouds",
    "corruptions",
    "data_root",
    "digits",
    "find",
    "md17",
    "mocap",
    "modelnet",
    "nbody",
    "qm9",
    "random_rotation",
    "rotmnist",
    "smoke",
    "status",
]
