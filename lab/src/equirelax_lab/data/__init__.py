"""Data sets: find, make, verify, load and batch them, independent of models."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equirelax_lab.data import (
        clouds,
        corruptions,
        digits,
        md17,
        mocap,
        mocap_cases,
        mocap_published,
        modelnet,
        nbody,
        qm9,
        qm9_archive,
        rotmnist,
        smoke,
    )
    from equirelax_lab.data.augment import random_rotation
    from equirelax_lab.data.fields import FieldSet
    from equirelax_lab.data.graphs import GraphSet
    from equirelax_lab.data.mocap import MocapSet
    from equirelax_lab.data.modelnet import CloudSet
    from equirelax_lab.data.molecules import MolecularFrames, MoleculeSet
    from equirelax_lab.data.nbody import NBody, NBodySet
    from equirelax_lab.data.root import DataStatus, data_root, find, status
    from equirelax_lab.data.rotmnist import ImageSet
    from equirelax_lab.data.samples import Samples

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
    "mocap_cases",
    "mocap_published",
    "modelnet",
    "nbody",
    "qm9",
    "qm9_archive",
    "random_rotation",
    "rotmnist",
    "smoke",
    "status",
]

_HOMES = {
    "augment": ("random_rotation",),
    "fields": ("FieldSet",),
    "graphs": ("GraphSet",),
    "mocap": ("MocapSet",),
    "modelnet": ("CloudSet",),
    "molecules": (
        "MolecularFrames",
        "MoleculeSet",
    ),
    "nbody": (
        "NBody",
        "NBodySet",
    ),
    "root": (
        "DataStatus",
        "data_root",
        "find",
        "status",
    ),
    "rotmnist": ("ImageSet",),
    "samples": ("Samples",),
}


def __getattr__(name: str) -> object:
    """Import a data set when it is first used: a command's help needs none."""
    if name not in __all__:
        raise AttributeError(f"module 'equirelax_lab.data' has no attribute {name!r}")
    home = next((file for file, names in _HOMES.items() if name in names), None)
    if home is None:
        return importlib.import_module(f"equirelax_lab.data.{name}")
    value: object = getattr(importlib.import_module(f"equirelax_lab.data.{home}"), name)
    globals()[name] = value
    return value
