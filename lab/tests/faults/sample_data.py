"""A small data root with every kind of data file, and the loader of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from equirelax_lab.data import md17, mocap, modelnet, nbody, qm9, rotmnist, smoke
from equirelax_lab.data.archive import write_sums
from md17_files import original, write_revised, write_xyz
from qm9_files import write_subset
from smoke_files import SMALL, write_plumes
from torch import Tensor

SIZES = {"train": 5, "val": 3, "test": 7}
"""Of rotated MNIST, small."""


@dataclass(frozen=True)
class Sample:
    """Made-up data of one kind.

    Attributes:
        write: makes it below a data root. load: reads it. files: what is damaged, below the root.
        sums: whether its files carry no checksums of their own, so that SHA256SUMS is written beside them.
    """

    write: Callable[[Path], Any]
    load: Callable[[Path], Any]
    files: tuple[str, ...]
    sums: bool = False


def make(sample: Sample, root: Path) -> Path:
    """Write the data, and checksums if it has none of its own; return the root."""
    root.mkdir(parents=True, exist_ok=True)
    sample.write(root)
    if sample.sums:
        write_sums(root)
    return root


def tensors(found: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    """Everything that was loaded, bit by bit."""
    return [(name, tuple(t.shape), t.contiguous().numpy().tobytes()) for name, t in _tensors(found, "")]


def _tensors(found: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(found, Tensor):
        yield where, found
    elif hasattr(found, "__dataclass_fields__"):
        for field in fields(found):
            if field.init:
                yield from _tensors(getattr(found, field.name), f"{where}.{field.name}")


def _mocap(root: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([75, 72, 73])
    (root / "cmu_mocap").mkdir()
    np.savez_compressed(
        root / "cmu_mocap" / "cmu09_run.npz",
        pos=rng.uniform(1, 20, (lengths.sum(), 31, 3)).astype(np.float32),
        lengths=lengths,
        joints=np.array([f"joint{n}" for n in range(31)]),
        edges=np.array([[joint, (joint - 1) // 2] for joint in range(1, 31)]),
    )
    starts = {f"{split}_start": np.arange(40)[None] for split in mocap.SPLITS}
    trials = {f"{split}_trial": np.array([n]) for n, split in enumerate(mocap.SPLITS)}
    np.savez(root / "cmu_mocap" / "egno_split_run.npz", **starts, **trials)  # type: ignore[arg-type]


def _clouds(root: Path) -> None:
    rng = np.random.default_rng(0)
    (root / "modelnet40").mkdir()
    arrays = {"classes": np.array(["bed", "chair"]), "scale": np.float32(2.0)}
    for part in ("train", "test"):
        arrays[f"{part}_xyz"] = rng.integers(-999, 999, (8, 6, 3)).astype(np.int16)
        arrays[f"{part}_y"] = np.repeat([0, 1], 4).astype(np.uint8)
    np.savez_compressed(root / "modelnet40" / "modelnet40_1024_int16.npz", **arrays)  # type: ignore[arg-type]


def _clouds_hdf5(root: Path) -> None:
    import h5py

    place = root / "modelnet40" / "modelnet40_ply_hdf5_2048"
    place.mkdir(parents=True)
    (place / "shape_names.txt").write_text("bed\nchair\n")
    with h5py.File(place / "ply_data_train0.h5", "w") as file:
        file["data"] = np.random.default_rng(0).uniform(-0.5, 0.5, (8, 6, 3)).astype(np.float32)
        file["label"] = np.repeat([0, 1], 4).astype(np.uint8)[:, None]


def _digits(root: Path) -> None:
    rng = np.random.default_rng(0)
    (root / "mnist").mkdir()
    arrays = {}
    for half, count in (("train", 12), ("test", 4)):
        arrays[f"{half}_x"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{half}_y"] = np.arange(count, dtype=np.uint8) % 10
    np.savez_compressed(root / "mnist" / "mnist.npz", **arrays)  # type: ignore[arg-type]


def _original(root: Path) -> None:
    (root / "md17").mkdir()
    np.savez(root / "md17" / "md17_ethanol.npz", **original(2010))


def _nbody(system: str, clamp: str | None = None) -> Sample:
    folder = f"nbody/{system}-{clamp or 'component'}-seed0"
    return Sample(
        lambda root: nbody.make(system, clamp=clamp, sizes={"train": 6}, root=root, threads=1),
        lambda root: nbody.load("train", system=system, clamp=clamp, root=root),
        (f"{folder}/train.npz", f"{folder}/train.json"),
    )


_FEW = (20, 5, 5)
_REVISED = ("md17/rmd17/npz_data/rmd17_ethanol.npz", "md17/rmd17/splits/index_train_01.csv")
_PLUME = f"{SMALL.folder.as_posix()}/run-0-00"
SAMPLES: dict[str, Sample] = {
    "nbody": _nbody("charged"),
    "nbody-norm": _nbody("charged", "norm"),
    "smoke": Sample(
        write_plumes,
        lambda root: smoke.load("train", SMALL, inputs=4, outputs=2, root=root),
        (f"{_PLUME}.npz", f"{_PLUME}.json"),
    ),
    "mocap": Sample(
        _mocap,
        lambda root: mocap.load("train", root=root, starts=3),
        ("cmu_mocap/cmu09_run.npz", "cmu_mocap/egno_split_run.npz"),
    ),
    "modelnet": Sample(
        _clouds, lambda root: modelnet.load("train", root=root), ("modelnet40/modelnet40_1024_int16.npz",)
    ),
    "modelnet-hdf5": Sample(
        _clouds_hdf5,
        lambda root: modelnet.load("train", root=root),
        (
            "modelnet40/modelnet40_ply_hdf5_2048/ply_data_train0.h5",
            "modelnet40/modelnet40_ply_hdf5_2048/shape_names.txt",
        ),
        sums=True,
    ),
    "qm9": Sample(
        write_subset, lambda root: qm9.load("train", partition="ordered", root=root), ("qm9/qm9_subset.npz",)
    ),
    "mnist": Sample(_digits, lambda root: rotmnist.load("train", root), ("mnist/mnist.npz",)),
    "md17": Sample(
        _original, lambda root: md17.load("train", "ethanol", "md17", root, _FEW), ("md17/md17_ethanol.npz",)
    ),
    "rmd17": Sample(
        lambda root: write_revised(root / "md17" / "rmd17", list(range(30)), list(range(30, 40)), 50),
        lambda root: md17.load("train", "ethanol", "rmd17", root, _FEW),
        _REVISED,
        sums=True,
    ),
    "rmd17-xyz": Sample(
        lambda root: write_xyz(root, train=30, test=5),
        lambda root: md17.load("train", "ethanol", "rmd17", root, _FEW),
        ("md17/rmd17_ethanol_train.xyz",),
        sums=True,
    ),
}
