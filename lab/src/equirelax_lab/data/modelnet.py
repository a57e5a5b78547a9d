"""ModelNet40 (Wu et al., CVPR 2015): point clouds of 12,311 objects of 40 classes, 9843 to train and 2468 to test.

Every cloud is centred and fills the unit sphere, with z up. The validation split is taken from the training objects, stratified
and seeded; only `load("test")` reads the test objects.

These files are read, in the folder modelnet40 of the data root (the two archives may also be directly below the root):

- `modelnet40_1024_int16.npz`: all objects, 1024 uniform surface samples each, as int16 times `scale`.
- `modelnet10_small_1024_f32.npz`: 10 classes with 40 + 20 objects each.
- `modelnet40_ply_hdf5_2048/`: PointNet's official archive: 2048 points, 9840 + 2468 objects, with y up in the file.
  `equirelax data get modelnet40` downloads it. It needs h5py.
- `modelnet40_normal_resampled/`: PointNet++'s text archive: 10,000 points with normals in one file per object, with y up in
  the file. The first 2048 points are used, as released loaders do. The text is read once, and the result is kept below the
  data root in `modelnet40/resampled_2048_*.npz`.

The sources sample the same surfaces, but at different points. That y is up in the two archives follows from the released
augmentations, which rotate about y. The readers were tested on synthetic archives of the same layout.
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
from equirelax_lab.data.archive import check_sum, load_npz, manifest_path, read_archive, write_archive
from equirelax_lab.data.root import command, find, search_roots, writable_root
from equirelax_lab.extras import install

FOLDER = Path("modelnet40")
NPZ = FOLDER / "modelnet40_1024_int16.npz"
SMALL = FOLDER / "modelnet10_small_1024_f32.npz"
HDF5 = "modelnet40_ply_hdf5_2048"
RESAMPLED = "modelnet40_normal_resampled"
SOURCES = ("modelnet40", "modelnet10-small", "modelnet40-npz", "modelnet40-hdf5", "modelnet40-resampled")
RESAMPLED_POINTS = 2048

_GET = "equirelax data get modelnet40"
_RESAMPLED_GET = (
    f"It is no longer at its old address everywhere: unpack {RESAMPLED}.zip (PointNet++'s) as a folder of "
    "that name below modelnet40"
)


@dataclass
class Objects:
    """The content of a file: points (N, n, 3), which `scale` multiplies, labels (N,) int, and the names of classes."""

    points: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    origin: str
    scale: float = 1.0


def read(source: str, part: str, root: str | Path | None = None) -> Objects:
    """Read the `train` or `test` objects of one of `SOURCES`, and nothing of the other part.

    Raises:
        DataError: A file is missing, damaged or of another kind.
    """
    if source == "modelnet10-small":
        return _present_classes(_read_npz(find(SMALL, root, hint="Put it there"), part))
    if source == "modelnet40":
        source = _first_there(root)
    if source == "modelnet40-npz":
        return _read_npz(find(NPZ, root, hint="Put it there, or get the official archive"), part)
    if source == "modelnet40-hdf5":
        return _read_hdf5(_archive_folder(HDF5, root, f"Get it: {command(_GET, root)}"), part, root)
    return _read_resampled(part, root)


def _first_there(root: str | Path | None) -> str:
    """The first source of the whole data set that is below the data root."""
    for folder in search_roots(root):
        if (folder / NPZ).is_file():
            return "modelnet40-npz"
    for name, source in ((HDF5, "modelnet40-hdf5"), (RESAMPLED, "modelnet40-resampled")):
        if any(place.is_dir() for place in _places(name, root)):
            return source
    return "modelnet40-hdf5"  # reading it will report that it is missing, and how to get it


def _places(name: str, root: str | Path | None) -> list[Path]:
    return [folder / below for folder in search_roots(root) for below in (FOLDER / name, Path(name))]


def _archive_folder(name: str, root: str | Path | None, hint: str) -> Path:
    for place in _places(name, root):
        if place.is_dir():
            return place
    return find(FOLDER / name, root, hint=hint)


def _require(condition: bool, path: Path, problem: str) -> None:
    if not condition:
        raise DataError(f"{path}: {problem}. The file is not the one that is expected; get it again.")


def _check(objects: Objects, path: Path) -> Objects:
    """Raise `DataError` unless points, labels and classes are finite and fit together."""
    points, labels = objects.points, objects.labels
    _require(
        points.ndim == 3 and points.shape[-1] == 3 and points.size > 0 and points.dtype.kind in "iuf",
        path,
        f"points must be (objects, points, 3) numbers, but are {points.dtype} {points.shape}",
    )
    _require(
        labels.shape == (len(points),) and labels.dtype.kind in "iu",
        path,
        f"labels must be integers ({len(points)},), but are {labels.dtype} {labels.shape}",
    )
    _require(
        int(labels.min()) >= 0 and int(labels.max()) < len(objects.classes),
        path,
        f"labels must be below the number of classes, {len(objects.classes)}",
    )
    finite = points.dtype.kind in "iu" or bool(np.isfinite(points).all())
    _require(finite and bool(np.isfinite(objects.scale)), path, "points hold NaN or infinity")
    return objects


def _read_npz(path: Path, part: str) -> Objects:
    keys = [f"{part}_xyz", f"{part}_y", "classes"]
    arrays = load_npz(path, path, "Get the file again.", keys=[*keys, "scale"])
    missing = [key for key in keys if key not in arrays]
    _require(not missing, path, f"the arrays {', '.join(missing)} are missing")
    scale = arrays.get("scale", np.ones(()))
    number = scale.size == 1 and scale.dtype.kind in "iuf"
    _require(number and scale.item() > 0, path, "scale must be one positive number")
    classes = tuple(str(name) for name in arrays["classes"])
    labels = arrays[f"{part}_y"]
    labels = labels.astype(np.int64) if labels.dtype.kind in "iu" else labels
    return _check(Objects(arrays[f"{part}_xyz"], labels, classes, path.stem, float(scale.item())), path)


def _present_classes(objects: Objects) -> Objects:
    """Keep only the classes that have objects."""
    present, labels = np.unique(objects.labels, return_inverse=True)
    objects.classes = tuple(objects.classes[n] for n in present)
    objects.labels = labels.astype(np.int64)
    return objects


def z_up(points: np.ndarray) -> np.ndarray:
    """Rotate points (..., 3) with y up by 90 degrees about x: (x, y, z) -> (x, -z, y)."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)


def _read_hdf5(folder: Path, part: str, root: str | Path | None) -> Objects:
    """Read ply_data_{part}*.h5, each with data (N, 2048, 3) float32 and label (N, 1), in the order of their names."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise DataError(f"Reading {folder} needs the package h5py: {install('modelnet')}") from None
    files = sorted(folder.glob(f"ply_data_{part}*.h5"))
    _require(bool(files), folder, f"there are no files ply_data_{part}*.h5")
    classes = _class_names(folder / "shape_names.txt")
    points, labels = [], []
    for path in files:
        check_sum(path)
        try:
            with h5py.File(path, "r") as file:
                points.append(np.asarray(file["data"], dtype=np.float32))
                labels.append(np.asarray(file["label"]).reshape(-1).astype(np.int64))
        # Damage and other contents raise errors of many types in h5py: OSError, KeyError, RuntimeError, TypeError, ...
        except Exception as error:
            raise DataError(
                f"{path} cannot be read ({error}). Get it again: {command(f'{_GET} --force', root)}."
            ) from error
        _check(Objects(points[-1], labels[-1], classes, folder.name), path)
    _require(len({p.shape[1:] for p in points}) == 1, folder, "its files hold different numbers of points")
    return Objects(z_up(np.concatenate(points)), np.concatenate(labels), classes, folder.name)


def _class_names(path: Path) -> tuple[str, ...]:
    check_sum(path)
    try:
        names = tuple(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}, the names of the classes, cannot be read ({error}).") from error
    _require(bool(names) and len(set(names)) == len(names), path, "it must hold different names")
    return names


def _read_resampled(part: str, root: str | Path | None) -> Objects:
    """Read the kept .npz if it exists, else the text archive."""
    kept = FOLDER / f"resampled_{RESAMPLED_POINTS}_{part}.npz"
    for folder in search_roots(root):
        if manifest_path(folder / kept).is_file():
            path = folder / kept
            arrays, _ = read_archive(path, f"Remove {path}, so that it is made again from the text.")
            classes = tuple(str(name) for name in arrays["classes"])
            return _check(Objects(arrays["points"], arrays["labels"], classes, RESAMPLED), path)
    objects = read_text_archive(_archive_folder(RESAMPLED, root, _RESAMPLED_GET), part, RESAMPLED_POINTS)
    arrays = {"points": objects.points, "labels": objects.labels, "classes": np.array(objects.classes)}
    write_archive(writable_root(root) / kept, arrays, {"made_from": RESAMPLED, "count": len(objects.labels)})
    return objects


def read_text_archive(folder: Path, part: str, points: int) -> Objects:
    """Read `points` of every object that modelnet40_{part}.txt lists (`chair_0001` is chair/chair_0001.txt).

    Every cloud is centred and scaled to the unit sphere after its points were chosen.
    """
    classes = _class_names(folder / "modelnet40_shape_names.txt")
    clouds, labels = [], []
    for name in _class_names(folder / f"modelnet40_{part}.txt"):
        kind = name.rpartition("_")[0]
        path = folder / kind / f"{name}.txt"
        _require(kind in classes, folder / f"modelnet40_{part}.txt", f"{name} belongs to no known class")
        check_sum(path)
        try:
            rows = np.loadtxt(
                path, delimiter=",", dtype=np.float32, usecols=(0, 1, 2), max_rows=points, ndmin=2
            )
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}). {_RESAMPLED_GET}.") from error
        _require(len(rows) == points, path, f"it holds {len(rows)} points, and {points} are needed")
        clouds.append(unit_sphere(rows))
        labels.append(classes.index(kind))
    objects = Objects(z_up(np.stack(clouds)), np.array(labels, dtype=np.int64), classes, folder.name)
    return _check(objects, folder)


def unit_sphere(points: np.ndarray) -> np.ndarray:
    """Centre points (n, 3) and divide them by the largest distance from the centre."""
    centred = points - points.mean(0, keepdims=True)
    radius = np.linalg.norm(centred, axis=-1).max()
    return centred / radius if radius > 0 else centred


SPLITS = ("train", "val", "test")
CLASSES = 40
"""Number of classes of the whole data set."""


@dataclass
class CloudSet:
    """N labelled point clouds of n points each.

    Attributes:
        points: (N, n, 3) float32.
        labels: (N,) long, positions in `classes`.
        classes: Names of the classes.
        origin: The file from which the clouds came. Sources are comparable, but not identical.
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
        """The device of the tensors."""
        return self.points.device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The set on `device`, its points as `dtype`."""
        points = self.points.to(device=device, dtype=dtype)
        return dataclasses.replace(self, points=points, labels=self.labels.to(device))

    def subset(self, indices: Tensor | Sequence[int] | slice) -> Self:
        """Only the objects `indices`, in that order; classes keep their numbers."""
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
        split: `train`, `val` or `test`. `val` takes the share `val_fraction` of the training objects of every class, drawn with
            `val_seed` (the same objects whatever the other arguments are).
        source: One of `SOURCES`. `modelnet40` takes the first of the .npz with 1024 points, the official hdf5 archive and the
            resampled text archive that exists. `modelnet10-small` has 10 classes with 40 + 20 objects each.
        classes: Names of classes; labels are positions in this sequence. None: all classes of the source.
        per_class: Largest number of objects per class, from the first of the split on; None: all.
        val_fraction: Share of the training objects for validation, in [0, 1).
        val_seed: Seed of that draw.
        root: See `equirelax_lab.data.root`.

    Raises:
        DataError: A name is unknown, a number is out of range, or files are missing or damaged. The message says how to get
            them.
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
    """Draw round(fraction count) objects of every class without replacement: (N,) bool.

    A fraction above 0 takes at least one object of every class and leaves at least one. Each class has its own generator, so that
    its draw does not depend on the other classes.
    """
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1) if fraction > 0 else 0
        mask[np.random.default_rng([seed, int(label)]).permutation(members)[:count]] = True
    return mask


def _numbers(known: tuple[str, ...], wanted: Sequence[str] | None) -> np.ndarray:
    """The numbers of the requested classes in the file, in their order."""
    if wanted is None:
        return np.arange(len(known))
    for name in wanted:
        if name not in known:
            raise DataError(f"Unknown class {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    if not wanted or len(set(wanted)) != len(wanted):
        raise DataError(f"classes must be different names, at least one; got {tuple(wanted)}.")
    return np.array([known.index(name) for name in wanted])


def _first_of_class(labels: np.ndarray, keep: np.ndarray, count: int) -> np.ndarray:
    """Select the first `count` kept objects of every class: (N,) bool."""
    first = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        first[np.flatnonzero(keep & (labels == label))[:count]] = True
    return first


def _assemble(objects: Objects, keep: np.ndarray, numbers: np.ndarray) -> CloudSet:
    """Convert the kept objects to tensors, labelled 0 .. k-1 in the order of `numbers`."""
    position = np.full(len(objects.classes), -1)
    position[numbers] = np.arange(len(numbers))
    points = objects.points[keep].astype(np.float32) * np.float32(objects.scale)
    return CloudSet(
        points=torch.from_numpy(points),
        labels=torch.from_numpy(position[objects.labels[keep]].astype(np.int64)),
        classes=tuple(objects.classes[n] for n in numbers),
        origin=objects.origin,
    )
