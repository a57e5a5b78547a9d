"""The motion capture loader: against loops on made-up files, damaged files, and the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from equirelax_lab.data import mocap
from equirelax_lab.data.archive import write_archive
from equirelax_lab.data.mocap import skeleton_graph
from real_data import SAMPLES

from equirelax.errors import DataError

LENGTHS = [75, 80, 90, 77]
BONES = np.array([[joint, (joint - 1) // 2] for joint in range(1, 31)])
Arrays = dict[str, np.ndarray]


def motion_arrays() -> Arrays:
    rng = np.random.default_rng(0)
    positions = rng.uniform(1, 20, (sum(LENGTHS), 31, 3)).astype(np.float32)
    names = np.array([f"joint{n}" for n in range(31)])
    return {"pos": positions, "lengths": np.array(LENGTHS), "joints": names, "edges": BONES}


def split_arrays() -> Arrays:
    rng = np.random.default_rng(1)
    arrays = {}
    for split, trials in (("train", [2, 0]), ("val", [1]), ("test", [3])):
        arrays[f"{split}_trial"] = np.array(trials)
        arrays[f"{split}_start"] = np.stack([rng.permutation(45)[:42] for _ in trials])
    return arrays


def write(root: Path, motion: Arrays | None = None, split: Arrays | None = None) -> Path:
    folder = root / "cmu_mocap"
    folder.mkdir(exist_ok=True)
    np.savez(folder / "cmu09_run.npz", **(motion_arrays() if motion is None else motion))
    np.savez(folder / "egno_split_run.npz", **(split_arrays() if split is None else split))
    return root


def test_files_are_compared_with_their_manifests(tmp_path: Path) -> None:
    root = write(tmp_path)
    path = root / mocap.FOLDER / "cmu09_run.npz"
    write_archive(path, motion_arrays(), {})
    mocap.load("val", root=root)
    write(root, {**motion_arrays(), "pos": motion_arrays()["pos"] + 1})
    with pytest.raises(DataError, match=r"cmu09_run\.npz is damaged.*its manifest says"):
        mocap.load("val", root=root)


def test_samples_follow_the_protocol(tmp_path: Path) -> None:
    root = write(tmp_path)
    motion, split = motion_arrays(), split_arrays()
    trials = np.split(motion["pos"], np.cumsum(LENGTHS)[:-1])
    for name, used in (("train", 40), ("val", 42), ("test", 42)):
        data = mocap.load(name, root=root)
        expected = [
            (trial, start)
            for k, trial in enumerate(split[f"{name}_trial"])
            for start in split[f"{name}_start"][k, :used]
        ]
        assert len(data) == len(expected)
        for n, (trial, t) in enumerate(expected):
            x = torch.from_numpy(trials[trial])
            assert (data.trials[n], data.starts[n]) == (trial, t)
            assert torch.equal(data.positions[n], x[t])
            torch.testing.assert_close(data.velocities[n], x[t + 1] - x[t])
            assert torch.equal(data.targets[n], x[t + 30])
            assert torch.equal(data.trajectory[n], torch.stack([x[t + k] for k in (26, 27, 28, 29, 30)]))
    assert data.joints[3] == "joint3"


def test_starts_can_be_chosen(tmp_path: Path) -> None:
    root = write(tmp_path)
    assert len(mocap.load("train", root=root, starts=3)) == 6
    assert len(mocap.load("val", root=root, starts=42)) == 42
    with pytest.raises(DataError, match="42 starts; 43"):
        mocap.load("val", root=root, starts=43)


def test_skeleton_graph_has_one_and_two_hops() -> None:
    edges, hops = skeleton_graph(torch.from_numpy(BONES), 31)
    near = {(a, b) for a, b in BONES.tolist()} | {(b, a) for a, b in BONES.tolist()}
    two = {(a, c) for a, b in near for b2, c in near if b == b2 and a != c} - near
    found = {tuple(e): h for e, h in zip(edges.T.tolist(), hops.tolist(), strict=True)}
    assert found == {**dict.fromkeys(near, 1), **dict.fromkeys(two, 2)}
    assert len(found) == edges.shape[1]


def test_edge_features(tmp_path: Path) -> None:
    data = mocap.load("val", root=write(tmp_path))
    source, target = data.edge_index
    lengths = (data.positions[:, source] - data.positions[:, target]).square().sum(-1)
    torch.testing.assert_close(data.edge_features[..., 1], lengths)
    assert set(data.edge_features[..., 0].unique().tolist()) == {1.0, 2.0}


def test_published_height_depends_on_the_batch(tmp_path: Path) -> None:
    data = mocap.load("train", root=write(tmp_path))
    for chosen in ([0], [3, 8, 5]):
        batch = data.batch(chosen)
        y = data.positions[chosen][..., 1].flatten()
        torch.testing.assert_close(batch["features"][:, 1], y / y.max())
        speed = data.velocities[chosen].norm(dim=-1).flatten()
        torch.testing.assert_close(batch["features"][:, 0], speed)
    alone, together = data.batch([3])["features"], data.batch([3, 8, 5])["features"][:31]
    assert not torch.equal(alone, together)


def test_height_stays_when_the_pose_is_turned(tmp_path: Path) -> None:
    data = mocap.load("train", root=write(tmp_path))
    turn = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    plain, turned = data.batch([1, 2]), data.batch([1, 2], turn)
    assert torch.equal(plain["features"], turned["features"])
    torch.testing.assert_close(turned["positions"], plain["positions"] @ turn.T)
    torch.testing.assert_close(turned["trajectory"], plain["trajectory"] @ turn.T)


def test_fixed_height_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    root = write(tmp_path)
    data, train = (mocap.load(s, root=root, features="fixed-height") for s in ("test", "train"))
    expected = data.positions[..., 1] / train.positions[..., 1].max()
    torch.testing.assert_close(data.features[..., 1], expected)
    assert torch.equal(data.batch([4])["features"], data.batch([4, 0])["features"][:31])
    assert train.features[..., 1].max() == 1


def test_invariant_features(tmp_path: Path) -> None:
    data = mocap.load("test", root=write(tmp_path), features="invariant")
    torch.testing.assert_close(data.features[..., 0], data.velocities.norm(dim=-1))
    assert torch.equal(data.features[..., 1:], torch.eye(31).expand(len(data), -1, -1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    for name in ("cmu09_run.npz", "egno_split_run.npz"):
        write(tmp_path)
        cut(tmp_path / "cmu_mocap" / name)
        with pytest.raises(DataError, match=rf"{name} is not a readable .npz"):
            mocap.load("train", root=tmp_path)


def test_an_object_array_is_never_unpickled(tmp_path: Path) -> None:
    write(tmp_path, motion={**motion_arrays(), "joints": np.array([None] * 31)})
    with pytest.raises(DataError, match=r"cmu09_run\.npz is not a readable"):
        mocap.load("train", root=tmp_path)


def _nan(a: Arrays) -> None:
    a["pos"][5, 3, 1] = np.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_nan, "pos holds NaN"),
        (lambda a: a.update(pos=a["pos"][:, :30]), "pos must be"),
        (lambda a: a.update(lengths=a["lengths"] + 1), "lengths must be"),
        (lambda a: a.update(edges=a["edges"] + 1), "edges must be"),
        (lambda a: a.update(joints=a["joints"][:4]), "joints must be"),
        (lambda a: a.pop("edges"), "arrays edges are missing"),
    ],
)
def test_a_wrong_motion_file_is_named(
    tmp_path: Path, spoil: Callable[[Arrays], object], message: str
) -> None:
    arrays = motion_arrays()
    spoil(arrays)
    write(tmp_path, motion=arrays)
    with pytest.raises(DataError, match=rf"cmu09_run.npz: .*{message}"):
        mocap.load("train", root=tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.update(val_trial=np.array([9])), "not among the 4 trials"),
        (lambda a: a.update(val_trial=np.array([0])), r"trials \[0\] are in more than one split"),
        (lambda a: a.update(test_start=a["test_start"] + 30), "not 30 frames before the end"),
        (lambda a: a.update(test_start=a["test_start"][0]), "must be integers"),
        (lambda a: a.pop("train_start"), "arrays train_start are missing"),
    ],
)
def test_a_wrong_split_file_is_named(tmp_path: Path, spoil: Callable[[Arrays], object], message: str) -> None:
    arrays = split_arrays()
    spoil(arrays)
    write(tmp_path, split=arrays)
    with pytest.raises(DataError, match=rf"egno_split_run.npz: .*{message}"):
        mocap.load("train", root=tmp_path)


def test_missing_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cmu35_walk.npz is missing.*equirelax data get mocap-walk"):
        mocap.load("train", case="walk", root=tmp_path)
    for options in ({"split": "valid"}, {"case": "jump"}, {"features": "height"}):
        with pytest.raises(DataError, match="choose one of"):
            mocap.load(**{"split": "train", "root": tmp_path, **options})  # type: ignore[arg-type]


def test_training_samples_are_about_200(tmp_path: Path) -> None:
    """The protocol's number decides how many starts per trial are used."""
    write(tmp_path)
    parts = {**split_arrays(), "train_trial": np.array([2, 0]), "val_trial": np.array([1])}
    folder = tmp_path / "cmu_mocap"
    np.savez(
        folder / "many.npz",
        **{**motion_arrays(), "pos": np.ones((800, 31, 3)), "lengths": np.array([200] * 4)},
    )
    parts.update({f"{s}_start": np.tile(np.arange(150), (len(parts[f"{s}_trial"]), 1)) for s in mocap.SPLITS})
    np.savez(folder / "many_split.npz", **parts)
    assert len(mocap.load("train", case="many", root=tmp_path)) == 200
    assert len(mocap.load("test", case="many", root=tmp_path)) == 150


def test_the_real_files() -> None:
    for split, size in zip(mocap.SPLITS, (200, 240, 240), strict=True):
        data = mocap.load(split, case="run", root=SAMPLES)
        assert len(data) == size
        assert data.edge_index.shape == (2, 130)
        assert 0.15 < data.velocities.norm(dim=-1).mean() < 0.6
        # y is the height: feet near 0, head near 1.7 m (30 units); bones keep their length
        assert 25 < data.positions[..., 1].max() < 35
        hop = data.edge_features[..., 0] == 1
        spread = data.edge_features[..., 1].sqrt().std(0)[hop[0]]
        assert spread.max() < 0.02
