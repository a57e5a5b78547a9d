"""ModelNet40 (Wu et al., CVPR 2015): point clouds of 12,311 objects of 40 classes, 9843 to train, 2468 to test.

Clouds are centred and fill the unit sphere; z is up. Which files may hold them: `equirelax_lab.data.modelnet_files`.
The validation split is taken from the training objects, stratified and seeded; the test objects are read by
`load("test")` alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from equirelax.errors import DataError
from equirelax.files import did_you_mean
from equirelax_lab.data.modelnet_files import SOURCES, Objects, read

SPLITS = ("train", "val", "test")
CLASSES = 40
"""Number of classes of the whole data set."""


@dataclass
class CloudSet:
    """N labelled point clouds of n points each.

    Attributes:
        points: (N, n, 3) float32.
        labels: (N,) long, positions in `classes`.
        classes: names of the classes.
        origin: which file the clouds came from; sources are comparable, not identical.
    """

    points: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    origin: str = ""

    def __post_init__(self) -> None:
        count = self.points.shape[0]
        if self.points.ndim != 3 or self.points.shape[-1] != 3:
            raise DataError(f"points must have the shape (N, n, 3); got {tuple(self.points.shape)}.")
        if self.labels.shape != (count,) or self.labels.dtype != torch.long:
            raise DataError(
                f"labels must be long of shape ({count},); got {self.labels.dtype} {tuple(self.labels.shape)}."
            )

    def __len__(self) -> int:
        return self.points.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.points.device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The set on `device`, its points as `dtype`."""
        points = self.points.to(device=device, dtype=dtype)
        return dataclasses.replace(self, points=points, labels=self.labels.to(device))

    def subset(self, indices: Tensor | Sequence[int] | slice) -> Self:
        """The objects `indices` alone, in that order; classes keep their numbers."""
        return dataclasses.replace(self, points=self.points[indices], labels=self.labels[indices])

    def batch(self, indices: Tensor | Sequence[int]) -> dict[str, Tensor]:
        """The objects `indices` (b of them): points (b, n, 3), labels (b,)."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.device)
        return {"points": self.points.index_select(0, index), "labels": self.labels.index_select(0, index)}


def load(
    split: str,
    *,
    source: str = "modelnet40",
    classes: Sequence[str] | None = None,
    per_class: int | None = None,
    val_fraction: float = 0.1,
    val_seed: int = 0,
    root: str | Path | None = None,
) -> CloudSet:
    """Load a split, in the order of the file.

    Args:
        split: `train`, `val` or `test`. `val` is taken from the training objects: of every class the share
            `val_fraction`, drawn with `val_seed` (the same objects whatever the other arguments are).
        source: one of `modelnet_files.SOURCES`. `modelnet40` takes the first that is there of the .npz of
            1024 points, the official hdf5 archive and the resampled text archive; `modelnet10-small` has 10
            classes with 40 + 20 objects each.
        classes: names; labels are positions in this sequence. None: all classes of the source.
        per_class: of every class at most so many objects, the first ones of the split.
        val_fraction: in [0, 1).
        root: see `equirelax_lab.data.root`.

    Raises:
        DataError: unknown names, numbers out of range, or files that are missing or damaged; the message says
            how to get them.
    """
    if split not in SPLITS:
        raise DataError(f"Unknown split {split!r} of ModelNet40; choose one of {', '.join(SPLITS)}.")
    if source not in SOURCES:
        raise DataError(
            f"Unknown source {source!r} of ModelNet40.{did_you_mean(source, SOURCES)} "
            f"Choose one of {', '.join(SOURCES)}."
        )
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction must be in [0, 1); got {val_fraction}.")
    if per_class is not None and per_class < 1:
        raise DataError(f"per_class must be at least 1; got {per_class}.")
    objects = read(source, "test" if split == "test" else "train", root)
    numbers = _numbers(objects.classes, classes)
    keep = np.isin(objects.labels, numbers)
    if split != "test":
        held_out = validation_mask(objects.labels, val_fraction, val_seed)
        keep &= held_out if split == "val" else ~held_out
    if per_class is not None:
        keep &= _first_of_class(objects.labels, keep, per_class)
    if not keep.any():
        raise DataError(f"The {split} split of {source} is empty with val_fraction {val_fraction}.")
    return _assemble(objects, keep, numbers)


def validation_mask(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(N,) bool: of every class round(fraction count) objects, drawn without replacement.

    A fraction above 0 takes at least one object of every class and leaves at least one. Each class has a
    generator of its own, so that what is drawn of one does not depend on the others.
    """
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1) if fraction > 0 else 0
        mask[np.random.default_rng([seed, int(label)]).permutation(members)[:count]] = True
    return mask


def _numbers(known: tuple[str, ...], wanted: Sequence[str] | None) -> np.ndarray:
    """The file's numbers of the wanted classes, in their order."""
    if wanted is None:
        return np.arange(len(known))
    for name in wanted:
        if name not in known:
            raise DataError(f"Unknown class {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    if not wanted or len(set(wanted)) != len(wanted):
        raise DataError(f"classes must be different names, at least one; got {tuple(wanted)}.")
    return np.array([known.index(name) for name in wanted])


def _first_of_class(labels: np.ndarray, keep: np.ndarray, count: int) -> np.ndarray:
    """(N,) bool: the first `count` kept objects of every class."""
    first = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        first[np.flatnonzero(keep & (labels == label))[:count]] = True
    return first


def _assemble(objects: Objects, keep: np.ndarray, numbers: np.ndarray) -> CloudSet:
    """The kept objects as tensors, labelled 0 .. k-1 in the order of `numbers`."""
    position = np.full(len(objects.classes), -1)
    position[numbers] = np.arange(len(numbers))
    points = objects.points[keep].astype(np.float32) * np.float32(objects.scale)
    return CloudSet(
        points=torch.from_numpy(points),
        labels=torch.from_numpy(position[objects.labels[keep]].astype(np.int64)),
        classes=tuple(objects.classes[n] for n in numbers),
        origin=objects.origin,
    )
