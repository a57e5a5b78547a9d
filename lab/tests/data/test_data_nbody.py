"""Making, extending, verifying and loading the N-body data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from equirelax_lab.data import NBody, charged, gravity, nbody
from equirelax_lab.data.archive import manifest_path
from equirelax_lab.data.root import cache_root

from equirelax.errors import DataError


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 trajectories, input and target at the frames 1 and 2: the same code in milliseconds."""
    monkeypatch.setattr(charged, "CHUNK", 8)
    monkeypatch.setattr(charged.initial_states, "__defaults__", (8,))
    monkeypatch.setattr(nbody, "INPUT_FRAME", 1)
    monkeypatch.setattr(nbody, "TARGET_FRAME", 2)


def make(root: Path, count: int = 12, **options: object) -> Path:
    return nbody.make(sizes={"train": count}, root=root, threads=1, **options)["train"]  # type: ignore[arg-type]


def test_load_gives_what_was_simulated(tmp_path: Path) -> None:
    nbody.make(sizes={"train": 12, "val": 3}, root=tmp_path)
    data = nbody.load("train", root=tmp_path, dtype=torch.float64)
    states = nbody._states("charged", 0, "train", 0, 2)
    x, v, q = states
    out = charged.simulate(x, v, q, [1, 2])
    assert len(data) == 12
    assert torch.equal(data.positions, out.positions[:12, 0])
    assert torch.equal(data.velocities, out.velocities[:12, 0])
    assert torch.equal(data.targets, out.positions[:12, 1])
    assert torch.equal(data.charges, q[:12, :, None])
    assert torch.equal(data.clamped, out.clamped[:12])
    assert torch.equal(data.features[..., 0], data.velocities.norm(dim=-1))
    source, target = data.edge_index
    assert torch.equal(data.edge_features[..., 0], (q[:, source] * q[:, target])[:12])
    lengths = (data.positions[:, source] - data.positions[:, target]).square().sum(-1)
    assert torch.equal(data.edge_features[..., 1], lengths)
    assert not torch.equal(nbody.load("val", root=tmp_path).positions, data.positions[:3].float())
    assert NBody("train", count=5, root=tmp_path).positions.dtype == torch.float32


def test_bytes_are_reproducible_and_the_seed_matters(tmp_path: Path) -> None:
    first, again = make(tmp_path / "a"), make(tmp_path / "b")
    assert first.read_bytes() == again.read_bytes()
    assert manifest_path(first).read_text() == manifest_path(again).read_text()
    assert make(tmp_path / "a", seed=1).read_bytes() != first.read_bytes()


def test_the_first_rows_do_not_depend_on_how_many_are_made(tmp_path: Path) -> None:
    few, many = make(tmp_path / "a", 5), make(tmp_path / "b", 21)
    with np.load(few) as a, np.load(many) as b:
        assert all(np.array_equal(a[key], b[key][:5]) for key in ("positions", "velocities", "charges"))
    # 5 rows are extended to 21 in place, by simulating only what is missing
    steps: list[tuple[str, int, int]] = []
    extended = make(tmp_path / "a", 21, progress=lambda *told: steps.append(told))
    assert extended == few
    assert extended.read_bytes() == many.read_bytes()
    make(tmp_path / "a", 30, progress=lambda *told: steps.append(told))
    assert steps[-1][1:] == (16, 16)  # rows 16 .. 31


def test_good_data_are_left_alone(tmp_path: Path) -> None:
    path = make(tmp_path)
    stamp = path.stat().st_mtime_ns

    def never(split: str, done: int, count: int) -> None:
        raise AssertionError("simulated again")

    make(tmp_path, 4, progress=never)
    assert path.stat().st_mtime_ns == stamp
    make(tmp_path, 4, force=True)
    assert len(nbody.load("train", root=tmp_path)) == 4


def test_a_root_that_was_named_is_filled_and_a_read_only_one_is_not(tmp_path: Path) -> None:
    cached = make(cache_root())
    assert make(tmp_path / "named").is_relative_to(tmp_path / "named")
    sealed = tmp_path / "sealed"
    sealed.mkdir()
    sealed.chmod(0o555)
    assert make(sealed) == cached
    assert len(nbody.load("train", root=sealed)) == 12


def test_a_set_that_was_extended_beside_a_read_only_root_is_found(tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    few = make(sealed, 5, seed=3)
    sealed.chmod(0o555)
    more = make(sealed, 12, seed=3)
    assert more.is_relative_to(cache_root())
    data = nbody.load("train", root=sealed, seed=3, count=12)
    assert torch.equal(data.positions[:5], nbody.load("train", root=sealed, seed=3, count=5).positions)
    assert (make(sealed, 4, seed=3), make(sealed, 9, seed=3)) == (few, more)
    assert len(nbody.load("train", root=sealed, seed=3, count=12)) == 12
    with pytest.raises(DataError, match=rf"{more} holds 12 systems; 13 were requested"):
        nbody.load("train", root=sealed, seed=3, count=13)
    manifest = manifest_path(more)
    manifest.write_text(manifest.read_text().replace('"count": 12', '"count": "many"'))
    with pytest.raises(DataError, match=r"how many systems.*--force"):
        nbody.load("train", root=sealed, seed=3, count=12)
    assert len(nbody.load("train", root=sealed, seed=3, count=5)) == 5  # which needs no second place


def test_an_interrupted_make_leaves_nothing_half_and_can_go_on(tmp_path: Path) -> None:
    def interrupt(split: str, done: int, count: int) -> None:
        if split == "val":
            raise KeyboardInterrupt

    sizes = {"train": 4, "val": 4, "test": 4}
    with pytest.raises(KeyboardInterrupt):
        nbody.make(sizes=sizes, root=tmp_path, progress=interrupt)
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["train.json", "train.npz"]
    nbody.make(sizes=sizes, root=tmp_path)
    assert [len(nbody.load(split, root=tmp_path)) for split in nbody.SPLITS] == [4, 4, 4]


def test_an_archive_without_a_manifest_is_made_anew(tmp_path: Path) -> None:
    path = make(tmp_path)
    manifest_path(path).unlink()
    with pytest.raises(DataError, match="not finished"):
        nbody.load("train", root=tmp_path)
    make(tmp_path)
    assert len(nbody.load("train", root=tmp_path)) == 12


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_noticed_and_kept(tmp_path: Path, damage: str) -> None:
    path = make(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"flip": bytes(content), "cut": bytes(content[:-100]), "empty": b""}[damage]
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"damaged.*equirelax data make nbody --force"):
        nbody.load("train", root=tmp_path)
    with pytest.raises(DataError, match="damaged"):
        make(tmp_path)
    assert path.read_bytes() == damaged
    make(tmp_path, force=True)
    nbody.load("train", root=tmp_path)


def test_other_settings_are_noticed(tmp_path: Path) -> None:
    path = make(tmp_path)
    manifest = json.loads(manifest_path(path).read_text())
    assert manifest["settings"]["clamp"] == "component"
    manifest["settings"]["clamp"] = "norm"
    manifest_path(path).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="was made with settings"):
        nbody.load("train", root=tmp_path)


def test_the_file_says_which_clamp_was_used(tmp_path: Path) -> None:
    path = make(tmp_path, clamp="norm")
    with np.load(path, allow_pickle=False) as archive:
        assert json.loads(str(archive["settings"]))["clamp"] == "norm"
    assert path.parent.name == "charged-norm-seed0"


def test_messages_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=f"Make it: equirelax data make nbody --clamp norm --seed 2 --data {tmp_path},"
    ):
        nbody.load("train", clamp="norm", seed=2, root=tmp_path)
    make(tmp_path)
    with pytest.raises(DataError, match="holds 12 systems; 13 were requested"):
        nbody.load("train", count=13, root=tmp_path)
    for options in ({"system": "springs"}, {"clamp": "hard"}, {"system": "gravity", "clamp": "norm"}):
        with pytest.raises(DataError, match="choose one of"):
            nbody.load("train", root=tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="Unknown split"):
        nbody.load("valid", root=tmp_path)
    with pytest.raises(DataError, match="1 or more"):
        make(tmp_path, 0)


def test_replay_finds_another_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    assert nbody.replay("train", root=tmp_path).max() < 1e-9
    monkeypatch.setattr(charged, "TIME_STEP", 0.00101)
    assert nbody.replay("train", root=tmp_path).min() > 1e-9


def test_gravity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gravity, "CHUNK", 2)
    monkeypatch.setattr(gravity.initial_states, "__defaults__", (2,))
    monkeypatch.setattr(nbody, "INPUT_FRAME", 2)
    monkeypatch.setattr(nbody, "TARGET_FRAME", 3)
    nbody.make("gravity", sizes={"test": 2}, root=tmp_path)
    data = nbody.load("test", system="gravity", root=tmp_path, dtype=torch.float64)
    assert data.positions.shape == (2, 100, 3)
    assert data.edge_index.shape == (2, 2, 600)
    assert torch.equal(data.charges, torch.ones(2, 100, 1, dtype=torch.float64))
    assert nbody.replay("test", system="gravity", root=tmp_path).max() < 1e-9
    source, target = data.edge_index[1]
    distance = (data.positions[1, :, None] - data.positions[1, None]).norm(dim=-1)
    nearest = distance[7].argsort()[1:7]
    assert set(source[target == 7].tolist()) == set(nearest.tolist())
