"""ModelNet40: all kinds of files, splits, damaged files, and the real data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from equirelax_lab.data import CloudSet, DataStatus, data_root, modelnet, status
from equirelax_lab.data.modelnet import validation_mask

from equirelax.errors import DataError

NAMES = ("bed", "chair", "lamp")
COUNTS = {"train": (10, 20, 3), "test": (4, 5, 6)}
Arrays = dict[str, np.ndarray]


def clouds_of(part: str, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Points, whose first coordinate identifies the object, and unsorted labels."""
    rng = np.random.default_rng(0 if part == "train" else 1)
    labels = rng.permutation(np.repeat(np.arange(3), COUNTS[part]))
    return rng.uniform(-0.5, 0.5, (len(labels), n, 3)).astype(np.float32), labels


def npz_arrays() -> Arrays:
    arrays: Arrays = {"classes": np.array(NAMES), "scale": np.float32(2.0)}
    for part in COUNTS:
        points, labels = clouds_of(part)
        arrays[f"{part}_xyz"] = (points * 1000).astype(np.int16)
        arrays[f"{part}_y"] = labels.astype(np.uint8)
    return arrays


def write_npz(root: Path, arrays: Arrays, path: Path = modelnet.NPZ) -> Path:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    np.savez(root / path, **arrays)  # type: ignore[arg-type]
    return root


def y_up(points: np.ndarray) -> np.ndarray:
    """The inverse of the loader's turn, written as a rotation matrix."""
    return points @ np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=points.dtype)


def write_hdf5(root: Path, folder: str = modelnet.HDF5) -> Path:
    h5py = pytest.importorskip("h5py")
    place = root / folder
    place.mkdir(parents=True)
    (place / "shape_names.txt").write_text("\n".join(NAMES) + "\n")
    for part in COUNTS:
        points, labels = clouds_of(part)
        for number, rows in enumerate(np.array_split(np.arange(len(labels)), 2)):
            with h5py.File(place / f"ply_data_{part}{number}.h5", "w") as file:
                file["data"] = y_up(points[rows])
                file["label"] = labels[rows, None].astype(np.uint8)
    return root


def write_text_archive(root: Path, n: int = 12) -> Path:
    place = root / modelnet.FOLDER / modelnet.RESAMPLED
    place.mkdir(parents=True)
    (place / "modelnet40_shape_names.txt").write_text("\n".join(NAMES) + "\n")
    for part in COUNTS:
        points, labels = clouds_of(part, n)
        first = 0 if part == "train" else 100
        names = [f"{NAMES[label]}_{number:04d}" for number, label in enumerate(labels, first)]
        (place / f"modelnet40_{part}.txt").write_text("\n".join(names) + "\n")
        for name, cloud in zip(names, points, strict=True):
            folder = place / name.rpartition("_")[0]
            folder.mkdir(exist_ok=True)
            rows = np.concatenate([3 * y_up(cloud) + 5, np.zeros_like(cloud)], 1)
            np.savetxt(folder / f"{name}.txt", rows, delimiter=",")
    return root


def every(root: Path, part: str, **options: object) -> CloudSet:
    return modelnet.load(part, val_fraction=0.0, root=root, **options)  # type: ignore[arg-type]


def test_the_npz_is_scaled(tmp_path: Path) -> None:
    root = write_npz(tmp_path, npz_arrays())
    for part in COUNTS:
        points, labels = clouds_of(part)
        data = every(root, part)
        assert data.points.dtype == torch.float32
        expected = torch.from_numpy((points * 1000).astype(np.int16).astype(np.float32) * 2)
        assert torch.equal(data.points, expected)
        assert data.labels.tolist() == labels.tolist()
        assert (data.classes, data.origin) == (NAMES, "modelnet40_1024_int16")


@pytest.mark.parametrize("folder", [modelnet.HDF5, f"{modelnet.FOLDER}/{modelnet.HDF5}"])
def test_the_official_archive_is_turned_upright(tmp_path: Path, folder: str) -> None:
    root = write_hdf5(tmp_path, folder)
    for part in COUNTS:
        points, labels = clouds_of(part)
        data = every(root, part)
        torch.testing.assert_close(data.points, torch.from_numpy(points))
        assert data.labels.tolist() == labels.tolist()
        assert (data.classes, data.origin) == (NAMES, modelnet.HDF5)


def test_the_text_archive_is_normalised_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelnet, "RESAMPLED_POINTS", 10)
    root = write_text_archive(tmp_path)
    points, labels = clouds_of("train", 12)
    points = points[:, :10] - points[:, :10].mean(1, keepdims=True)
    expected = torch.from_numpy(points / np.linalg.norm(points, axis=-1).max(1)[:, None, None])
    first = every(root, "train")
    torch.testing.assert_close(first.points, expected, rtol=1e-4, atol=1e-5)
    assert first.labels.tolist() == labels.tolist()
    assert first.points.norm(dim=-1).amax(1).allclose(torch.ones(len(first)))
    kept = tmp_path / "modelnet40" / "resampled_10_train.npz"
    assert kept.is_file()
    (tmp_path / "modelnet40" / modelnet.RESAMPLED / "modelnet40_train.txt").unlink()
    again = every(root, "train", source="modelnet40-resampled")
    assert torch.equal(first.points, again.points)
    kept.write_bytes(kept.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"damaged or was changed.*Remove .*resampled_10_train.npz"):
        every(root, "train", source="modelnet40-resampled")


def test_which_file_is_taken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ply_hdf5_2048 is missing.*equirelax data get modelnet40"):
        every(tmp_path, "test")
    write_hdf5(tmp_path)
    assert every(tmp_path, "test").origin == modelnet.HDF5
    write_npz(tmp_path, npz_arrays())
    assert every(tmp_path, "test").origin == "modelnet40_1024_int16"
    assert every(tmp_path, "test", source="modelnet40-hdf5").origin == modelnet.HDF5
    with pytest.raises(DataError, match=r"normal_resampled is missing.*unpack"):
        every(tmp_path, "test", source="modelnet40-resampled")
    with pytest.raises(DataError, match=r"modelnet10_small_1024_f32.npz is missing"):
        every(tmp_path, "test", source="modelnet10-small")


@pytest.mark.parametrize(
    "write", [write_hdf5, write_text_archive, lambda root: write_npz(root, npz_arrays())]
)
def test_status_knows_every_form(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    def row() -> DataStatus:
        return next(row for row in status(tmp_path) if row.name == "modelnet40")

    assert not row().available
    assert row().how_to_get == f"equirelax data get modelnet40 --data {tmp_path}"
    write(tmp_path)
    assert row().available


def test_the_small_file_has_only_the_classes_that_it_has(tmp_path: Path) -> None:
    arrays = npz_arrays()
    for part in COUNTS:
        keep = arrays[f"{part}_y"] != 1
        arrays[f"{part}_xyz"], arrays[f"{part}_y"] = arrays[f"{part}_xyz"][keep], arrays[f"{part}_y"][keep]
    write_npz(tmp_path, arrays, modelnet.SMALL)
    data = every(tmp_path, "train", source="modelnet10-small")
    assert data.classes == ("bed", "lamp")
    assert data.labels.bincount().tolist() == [10, 3]


def test_validation_is_stratified_seeded_and_apart_from_training(tmp_path: Path) -> None:
    root = write_npz(tmp_path, npz_arrays())

    def keys(data: CloudSet) -> set[float]:
        return set(data.points[:, 0, 0].tolist())

    train, val, test = (modelnet.load(s, root=root, val_fraction=0.2) for s in modelnet.SPLITS)
    assert val.labels.bincount().tolist() == [2, 4, 1]
    assert train.labels.bincount().tolist() == [8, 16, 2]
    assert not keys(train) & keys(val)
    assert not keys(test) & (keys(train) | keys(val))
    assert keys(train) | keys(val) == keys(every(root, "train"))
    again = modelnet.load("val", root=root, val_fraction=0.2)
    other = modelnet.load("val", root=root, val_fraction=0.2, val_seed=1)
    assert torch.equal(val.points, again.points)
    assert keys(val) != keys(other)
    chairs = modelnet.load("val", root=root, val_fraction=0.2, classes=("chair",))
    assert torch.equal(chairs.points, val.points[val.labels == 1])


def test_the_test_objects_are_read_for_the_test_split_alone(tmp_path: Path) -> None:
    arrays = npz_arrays()
    del arrays["test_xyz"], arrays["test_y"]
    root = write_npz(tmp_path, arrays)
    assert len(modelnet.load("train", root=root)) + len(modelnet.load("val", root=root)) == 33
    with pytest.raises(DataError, match="test_xyz, test_y are missing"):
        modelnet.load("test", root=root)
    assert torch.equal(every(write_hdf5(tmp_path), "train").labels, every(root, "train").labels)


def test_validation_mask_against_counting() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 300)
    labels[7] = 9  # one object of its class: for training
    for fraction in (0.0, 0.001, 0.1, 0.5, 0.999):
        mask = validation_mask(labels, fraction, 3)
        for label in range(5):
            count = int((labels == label).sum())
            expected = 0 if fraction == 0 else min(max(round(fraction * count), 1), count - 1)
            assert mask[labels == label].sum() == expected
        assert not mask[7]
    halves = validation_mask(np.repeat([0, 1], 50), 0.2, 3)
    assert halves[:50].tolist() != halves[50:].tolist()  # not the same places of every class


def test_classes_and_numbers_of_objects(tmp_path: Path) -> None:
    root = write_npz(tmp_path, npz_arrays())
    chosen = every(root, "test", classes=("lamp", "bed"))
    assert chosen.classes == ("lamp", "bed")
    assert chosen.labels.bincount().tolist() == [6, 4]
    whole = every(root, "test")
    assert torch.equal(chosen.points[chosen.labels == 0], whole.points[whole.labels == 2])
    few = every(root, "train", per_class=5)
    assert few.labels.bincount().tolist() == [5, 5, 3]  # there are no more lamps
    train = every(root, "train")
    for label in range(3):
        assert torch.equal(few.points[few.labels == label], train.points[train.labels == label][:5])


def test_clouds_are_samples(tmp_path: Path) -> None:
    data = every(write_npz(tmp_path, npz_arrays()), "train")
    assert len(data) == 33
    assert data.device == torch.device("cpu")
    batch = data.batch(torch.tensor([3, 0, 3]))
    assert torch.equal(batch["points"], data.points[[3, 0, 3]])
    assert torch.equal(batch["labels"], data.labels[[3, 0, 3]])
    for part in (data.subset([5, 2]), data.subset(torch.tensor([5, 2]))):
        assert torch.equal(part.points, data.points[[5, 2]])
        assert part.classes == NAMES
    assert len(data.subset(slice(4))) == 4
    assert data.to("meta").device == torch.device("meta")
    assert data.to(dtype=torch.float64).labels.dtype == torch.long
    with pytest.raises(DataError, match=r"labels must be long of shape \(33,\)"):
        CloudSet(data.points, data.labels[:-1], NAMES)
    with pytest.raises(DataError, match=r"\(N, n, 3\)"):
        CloudSet(data.points.transpose(1, 2), data.labels, NAMES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "choose one of train, val, test"),
        ({"source": "modelnet4"}, "Did you mean 'modelnet40'"),
        ({"classes": ("chairs",)}, "Unknown class 'chairs'. Did you mean 'chair'"),
        ({"classes": ("bed", "bed")}, "different names"),
        ({"classes": ()}, "at least one"),
        ({"per_class": 0}, "per_class must be at least 1"),
        ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\)"),
        ({"split": "val", "val_fraction": 0.0}, "val split .* is empty"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, options: dict[str, object], message: str) -> None:
    root = write_npz(tmp_path, npz_arrays())
    with pytest.raises(DataError, match=message):
        modelnet.load(**{"split": "train", "root": root, **options})  # type: ignore[arg-type]


def _nan(a: Arrays) -> None:
    a["train_xyz"] = a["train_xyz"].astype(np.float32)
    a["train_xyz"][3, 2, 1] = np.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_nan, "NaN"),
        (lambda a: a.pop("classes"), "arrays classes are missing"),
        (lambda a: a.update(scale=np.zeros(())), "scale must be"),
        (lambda a: a.update(train_xyz=a["train_xyz"][..., :2]), r"points must be \(objects"),
        (lambda a: a.update(train_y=a["train_y"][1:]), "labels must be integers"),
        (lambda a: a.update(train_y=a["train_y"].astype(np.float32)), "labels must be integers"),
        (lambda a: a.update(train_y=a["train_y"] + 1), "labels must be below the number of classes, 3"),
    ],
)
def test_a_wrong_npz_is_named(tmp_path: Path, spoil: Callable[[Arrays], object], message: str) -> None:
    arrays = npz_arrays()
    spoil(arrays)
    with pytest.raises(DataError, match=rf"int16\.npz: .*{message}"):
        every(write_npz(tmp_path, arrays), "train")


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    place = write_hdf5(tmp_path) / modelnet.HDF5
    file = place / "ply_data_train1.h5"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match=r"ply_data_train1\.h5 cannot be read .*--force"):
        every(tmp_path, "train")
    (place / "shape_names.txt").unlink()
    with pytest.raises(DataError, match=r"shape_names\.txt, the names of the classes, cannot be read"):
        every(tmp_path, "test")
    for path in place.glob("ply_data_test*"):
        path.unlink()
    with pytest.raises(DataError, match="there are no files ply_data_test"):
        every(tmp_path, "test")

    write_text_archive(tmp_path)
    with pytest.raises(DataError, match="holds 12 points, and 2048 are needed"):
        every(tmp_path, "train", source="modelnet40-resampled")
    folder = tmp_path / modelnet.FOLDER / modelnet.RESAMPLED
    for path in folder.glob("*/*.txt"):
        path.write_text("1,2,x\n")
    with pytest.raises(DataError, match=r"bed_\d+\.txt cannot be read|chair_\d+\.txt cannot|lamp_\d+"):
        every(tmp_path, "train", source="modelnet40-resampled")
    (folder / "modelnet40_train.txt").write_text("sofa_0001\n")
    with pytest.raises(DataError, match="sofa_0001 belongs to no known class"):
        every(tmp_path, "train", source="modelnet40-resampled")


# --- the real files


def real(path: Path) -> None:
    if not (data_root() / path).is_file():
        pytest.skip(f"{path} is not under the data root {data_root()} (set EQUIRELAX_DATA)")


@pytest.mark.data
def test_the_real_small_file() -> None:
    real(modelnet.SMALL)
    sets = {s: modelnet.load(s, source="modelnet10-small") for s in modelnet.SPLITS}
    assert {s: d.labels.bincount().tolist() for s, d in sets.items()} == {
        "train": [36] * 10, "val": [4] * 10, "test": [20] * 10
    }  # fmt: skip
    assert sets["train"].points.shape == (360, 1024, 3)


@pytest.mark.data
def test_the_real_whole_file() -> None:
    real(modelnet.NPZ)
    sets = {s: modelnet.load(s, source="modelnet40-npz") for s in modelnet.SPLITS}
    assert [len(d) for d in sets.values()] == [8858, 985, 2468]
    for data in sets.values():
        assert data.points.shape[1:] == (1024, 3)
        assert data.labels.unique().tolist() == list(range(modelnet.CLASSES))
        torch.testing.assert_close(data.points.norm(dim=-1).amax(1), torch.ones(len(data)), atol=1e-3, rtol=0)
        assert data.points.mean(1).abs().max() < 1e-3
    # z is the vertical: bottles and persons are longest along it
    train = sets["train"]
    for name in ("bottle", "person"):
        tall = train.points[train.labels == train.classes.index(name)]
        extent = (tall.amax(1) - tall.amin(1)).mean(0)
        assert extent[2] > 2 * extent[:2].max()
