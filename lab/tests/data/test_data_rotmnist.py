"""Rotated MNIST and digits: angles, seeds, disjoint splits, errors for bad files."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from equirelax_lab.cli import main
from equirelax_lab.data import data_root, digits, rotmnist
from equirelax_lab.data.archive import load_npz, manifest_path, write_archive

from equirelax.errors import DataError

SIZES = {"train": 5, "val": 3, "test": 7}
Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("data") is None:
        monkeypatch.setattr(rotmnist, "SIZES", SIZES)


def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "train_x": rng.integers(0, 256, (12, 28, 28), dtype=np.uint8),
        "train_y": np.arange(12, dtype=np.uint8) % 10,
        "test_x": rng.integers(0, 256, (4, 28, 28), dtype=np.uint8),
        "test_y": np.arange(4, dtype=np.uint8),
    }


def write(root: Path, found: Arrays) -> Path:
    path = root / rotmnist.RELATIVE
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **found)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("size", [28, 29])
@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3])
def test_a_quarter_turn_is_that_of_the_grid(size: int, turns: int) -> None:
    images = torch.rand(3, 2, size, size, dtype=torch.float64)
    found = rotmnist.rotate(images, torch.full((3,), turns * math.pi / 2, dtype=torch.float64))
    torch.testing.assert_close(found, torch.rot90(images, turns, (-2, -1)))


def test_a_turn_there_and_back_is_nearly_nothing() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    bump = torch.exp(-8 * ((x - 0.3) ** 2 + y**2))[None, None]
    there = rotmnist.rotate(bump, torch.tensor([0.7]))
    assert (there - bump).abs().max() > 0.3
    assert (rotmnist.rotate(there, torch.tensor([-0.7])) - bump).abs().max() < 0.05
    # counter-clockwise: what was on the right is now above
    row, _ = divmod(int(there[0, 0].argmax()), 28)
    assert row < 13


def test_every_image_is_turned_by_its_own_seeded_angle(tmp_path: Path) -> None:
    found = arrays()
    write(tmp_path, found)
    sets = {split: rotmnist.load(split, tmp_path) for split in SIZES}
    assert {split: len(data) for split, data in sets.items()} == SIZES
    labels = torch.cat([data.labels for data in sets.values()])
    assert labels.tolist() == [*(i % 10 for i in range(12)), 0, 1, 2]
    generator = torch.Generator().manual_seed(rotmnist.SEED)
    angles = 2 * math.pi * torch.rand(15, generator=generator, dtype=torch.float64)
    plain = torch.from_numpy(np.concatenate([found["train_x"], found["test_x"]])[:15]).float()[:, None] / 255
    expected = torch.cat([rotmnist.rotate(plain[i : i + 1], angles[i : i + 1]) for i in range(15)])
    torch.testing.assert_close(torch.cat([data.images for data in sets.values()]), expected)
    batch = sets["val"].batch([2, 0])
    assert torch.equal(batch["images"], sets["val"].subset([2, 0]).images)
    assert torch.equal(batch["labels"], sets["val"].labels[[2, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_y": None}, "has no array train_y"),
        ({"train_x": np.zeros((3, 28, 28), np.uint8), "train_y": np.zeros(3, np.uint8)}, "15 images of 28 x 28 bytes"),
        ({"train_y": np.zeros(3, np.uint8)}, r"\(12, 28, 28\) uint8 with labels \(3,\)"),
        ({"train_x": np.zeros((12, 9, 9), np.uint8), "test_x": np.zeros((4, 9, 9), np.uint8)}, r"\(12, 9, 9\)"),
        ({"test_x": np.zeros((4, 784), np.uint8)}, r"\(4, 784\)"),
        ({"train_x": np.zeros((12, 28, 28), np.float32)}, "float32"),
        ({"test_y": np.full(4, 11, np.uint8)}, "holds the label 11"),
    ],
)  # fmt: skip
def test_bad_arrays(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    write(tmp_path, {k: v for k, v in (arrays() | change).items() if v is not None})
    with pytest.raises(DataError, match=message):
        rotmnist.load("train", tmp_path)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"mnist\.npz is missing; looked for .*equirelax data get mnist --data .*; or put mnist\.npz",
    ):
        rotmnist.load("train", tmp_path)
    path = write(tmp_path, arrays())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"mnist\.npz is not a readable"):
        rotmnist.load("train", tmp_path)
    with pytest.raises(DataError, match="Unknown split 'tst'"):
        rotmnist.load("tst", tmp_path)  # type: ignore[arg-type]


def test_another_file_under_the_same_manifest_is_noticed(tmp_path: Path) -> None:
    found = arrays()
    path = tmp_path / rotmnist.RELATIVE
    write_archive(path, found, {})
    rotmnist.load("train", tmp_path)
    write(tmp_path, {**found, "train_y": found["train_y"][::-1]})
    with pytest.raises(DataError, match=r"mnist\.npz is damaged.*its manifest says"):
        rotmnist.load("train", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"mnist\.npz is missing"):
        load_npz(path, path)


@pytest.mark.data
def test_the_real_file() -> None:
    if not (data_root() / rotmnist.RELATIVE).is_file():
        pytest.skip(f"{rotmnist.RELATIVE} is not under the data root {data_root()} (set EQUIRELAX_DATA)")
    data = rotmnist.load("val")
    assert data.images.shape == (2_000, 1, 28, 28)
    assert data.images.dtype == torch.float32
    assert 0 <= data.images.min() < data.images.max() <= 1.0001
    assert data.labels.bincount().min() > 150
    assert 0.1 < data.images.mean() < 0.16


def test_digits_are_turned_by_quarters_and_split_without_overlap() -> None:
    found = pytest.importorskip("sklearn.datasets").load_digits()
    sets = [digits.load(split) for split in digits.SPLITS]
    assert [len(data) for data in sets] == [1_000, 200, 597]
    images = torch.cat([data.images for data in sets])
    assert torch.equal(images, torch.cat([digits.load(split).images for split in digits.SPLITS]))
    assert torch.cat([data.labels for data in sets]).bincount().tolist() == np.bincount(found.target).tolist()
    # the sum of a picture's values does not change when it is turned
    sums = torch.from_numpy(found.images).float().sum((1, 2)).sort().values / 16
    torch.testing.assert_close(images.sum((1, 2, 3)).sort().values, sums)
    upright = torch.from_numpy(found.images).float() / 16
    for image, label in zip(sets[1].images[:20, 0], sets[1].labels, strict=False):
        same = [(torch.rot90(image, k) == upright).flatten(1).all(1).nonzero() for k in range(4)]
        assert any(found.target[i] == label for rows in same for i in rows.flatten())
    turned = sum(bool((upright == image).flatten(1).all(1).any()) for image in sets[1].images[:, 0])
    assert 20 < turned < 90  # a quarter of 200 stays upright


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="Unknown split"):
        digits.load("all")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="scikit-learn"):
        digits.load("train")


def test_mnist_is_fetched_and_written_as_the_file_that_load_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.zeros((70_000, 784), dtype=np.uint8)
    pixels[:, 3] = np.arange(70_000) % 251
    sent = SimpleNamespace(data=pixels, target=(np.arange(70_000) % 10).astype(str))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *_, **__: sent)
    assert main(["data", "get", "mnist", "--data", str(tmp_path)]) == 0
    path = tmp_path / rotmnist.RELATIVE
    assert str(path) in capsys.readouterr().out
    monkeypatch.setattr("sklearn.datasets.fetch_openml", None)  # there it is not fetched again
    assert main(["data", "get", "mnist", "--data", str(tmp_path)]) == 0
    assert str(path) in capsys.readouterr().out
    assert main(["data", "get", "mnist", "--data", str(tmp_path), "--url", "http://localhost"]) == 2
    assert "--url do not apply" in capsys.readouterr().err
    with np.load(path, allow_pickle=False) as found:
        assert found["train_x"].shape == (60_000, 28, 28)
        assert (found["test_y"] == np.arange(60_000, 70_000) % 10).all()
        assert (found["test_x"][:, 0, 3] == np.arange(60_000, 70_000) % 251).all()
    assert manifest_path(path).is_file()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (OSError("no route to host"), "could not be fetched.*no route to host.*Put mnist"),
        (SimpleNamespace(data=np.zeros((3, 784)), target=["1", "2", "3"]), r"sent \(3, 784\)"),
    ],
    ids=["no network", "something else"],
)
def test_a_fetch_that_fails_leaves_nothing(
    answer: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object, **__: object) -> object:
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    with pytest.raises(DataError, match=message):
        rotmnist.get(tmp_path)
    assert not list(tmp_path.rglob("*.npz"))
