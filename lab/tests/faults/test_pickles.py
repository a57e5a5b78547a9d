"""Malicious pickles and YAML in the place of every file: nothing in them is executed, and an error names the file."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e3nn import o3
from equirelax_lab.cli import main
from equirelax_lab.data import md17, mocap, mocap_published, modelnet, qm9, rotmnist
from equirelax_lab.data.archive import load_npz
from equirelax_lab.training.folder import BEST, CONFIG, LAST, RESULT
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train
from fault_ledger import Ledger
from md17_files import write_revised, write_xyz
from qm9_files import write_subset

import equirelax as er
from equirelax.errors import CheckpointError, DataError, EquirelaxError

BOMB = "pickle bomb"


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that a bomb creates; this checks first that it does."""
    path = tmp_path / "exploded"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()
    path.unlink()
    return path


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tiny_root: Path, tiny_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config("ace", network={"layers": 1, "hidden": 4}, epochs=1)
    train(config, folder, tiny_root, machine=Machine(progress=False, tensorboard=False))
    return folder


def as_archive(path: Path, mark: Path) -> None:
    torch.save({"format": "equirelax-run-1", "config": Bomb(mark)}, path)


def as_old_archive(path: Path, mark: Path) -> None:
    torch.save(Bomb(mark), path, _use_new_zipfile_serialization=False)


def as_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(mark)))


def inside_a_good_one(path: Path, mark: Path) -> None:
    """A valid file whose pickled part is replaced, with correct checksums."""
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickle.dumps(Bomb(mark), 2) if name.endswith("data.pkl") else content)


FORMS = (as_archive, as_old_archive, as_pickle, inside_a_good_one)


def refused(ledger: Ledger, mark: Path, name: str, read: Callable[[], Any], kind: type[Exception]) -> None:
    """Assert that reading fails with an error that names the file, and executes nothing."""
    message = ""
    try:
        read()
    except kind as error:
        message = str(error)
    ledger.note(BOMB, survived=name in message and not mark.exists())
    assert not mark.exists()
    assert name in message


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints(form: Callable[[Path, Path], None], mark: Path, tmp_path: Path, ledger: Ledger) -> None:
    def model() -> torch.nn.Module:
        return torch.nn.Sequential(o3.Linear("2x0e + 1x1o", "1x0e + 2x1o"))

    path = tmp_path / "saved.pt"
    er.save(er.relax(model()), path)
    form(path, mark)
    refused(ledger, mark, str(path), lambda: er.load(model(), path), CheckpointError)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["audit", "{run}"], BEST),
        (["audit", "{run}/last.ckpt"], LAST),
        (["project", "{run}", "-o", "{run}/strict.safetensors"], BEST),
        (["symmetry", "{run}"], BEST),
        (["train", "nbody", "--config", "{run}/config.yaml", "--out", "{run}", "--resume"], LAST),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_checkpoints_on_the_command_line(
    words: list[str], name: str, form: Callable[[Path, Path], None], run: Path, tiny_root: Path, mark: Path,
    tmp_path: Path, ledger: Ledger, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    if words[0] == "train":
        (folder / RESULT).unlink()
    form(folder / name, mark)
    given = [word.format(run=folder) for word in words]
    code = main([*given, "--data", str(tiny_root)] if words[0] in ("audit", "train") else given)
    said = capsys.readouterr().err
    ledger.note(BOMB, survived=code == 2 and name in said and not mark.exists())
    assert not mark.exists()
    assert code == 2
    assert str(folder / name) in said
    assert "Traceback" not in said


def yaml_bomb(mark: Path) -> str:
    return f"epochs: !!python/object/apply:os.system [\"touch '{mark}'\"]\nbenchmark: nbody\n"


@pytest.mark.parametrize(
    "words",
    [
        ["report", "{folder}"],
        ["train", "nbody", "--config", "{file}"],
        ["train", "nbody", "--out", "{folder}", "--resume"],
        ["compare", "nbody", "--config", "{file}", "--methods", "strict"],
        ["study", "run", "{file}"],
        ["study", "estimate", "{file}"],
        ["symmetry", "{folder}"],
    ],
    ids=" ".join,
)
def test_yaml_on_the_command_line(
    words: list[str], mark: Path, tmp_path: Path, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / CONFIG).write_text(yaml_bomb(mark))
    code = main([word.format(folder=folder, file=folder / CONFIG) for word in words])
    said = capsys.readouterr().err
    ledger.note("code in a YAML file", survived=code == 2 and not mark.exists() and str(folder) in said)
    assert not mark.exists()
    assert code == 2
    assert str(folder) in said
    assert "Traceback" not in said


def objects(mark: Path) -> np.ndarray:
    found = np.empty(1, dtype=object)
    found[0] = Bomb(mark)
    return found


DATA: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "mocap": ("cmu_mocap/cmu09_run.npz", lambda root: mocap.load("train", root=root)),
    "qm9": ("qm9/qm9_subset.npz", lambda root: qm9.load("train", root=root)),
    "mnist": ("mnist/mnist.npz", lambda root: rotmnist.load("train", root)),
    "modelnet": ("modelnet40/modelnet40_1024_int16.npz", lambda root: modelnet.load("train", root=root)),
    "md17": ("md17/md17_ethanol.npz", lambda root: md17.load("train", "ethanol", "md17", root)),
}
KEYS = ("pos", "Z", "train_x", "train_xyz", "classes", "z", "R", "lengths")
"""Of arrays that these read."""


@pytest.mark.parametrize("kind", ["objects", "pickle", "npy"])
@pytest.mark.parametrize("name", DATA)
def test_data(name: str, kind: str, mark: Path, tmp_path: Path, ledger: Ledger) -> None:
    relative, load = DATA[name]
    path = tmp_path / "data" / relative
    path.parent.mkdir(parents=True)
    if kind == "objects":
        np.savez(path, **dict.fromkeys(KEYS, objects(mark)))  # type: ignore[arg-type]
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, objects(mark))
    else:
        as_pickle(path, mark)
    refused(ledger, mark, str(path), lambda: load(tmp_path / "data"), DataError)


def test_numpy_would_have_run_it(mark: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=objects(mark))
    with pytest.raises(DataError, match=r"x\.npz"):
        load_npz(path, path)
    assert not mark.exists()
    with np.load(path, allow_pickle=True) as archive:
        archive["a"]
    assert mark.exists()


def test_other_kinds_of_data_files(mark: Path, tmp_path: Path, ledger: Ledger) -> None:
    root = tmp_path / "data"
    write_xyz(root, train=30)
    as_pickle(root / "md17" / "rmd17_ethanol_train.xyz", mark)
    name = "rmd17_ethanol_train.xyz"
    refused(ledger, mark, name, lambda: md17.load("train", "ethanol", "rmd17", root), DataError)
    shutil.rmtree(root)
    folder = write_revised(root / "md17" / "rmd17", [0, 1], [2, 3])
    as_pickle(folder / "splits" / "index_train_01.csv", mark)
    counts = (1, 1, 1)
    refused(
        ledger,
        mark,
        "index_train_01.csv",
        lambda: md17.load("train", "ethanol", "rmd17", root, counts),
        DataError,
    )
    h5py = pytest.importorskip("h5py")
    place = root / "modelnet40_ply_hdf5_2048"
    place.mkdir()
    (place / "shape_names.txt").write_text("bed\nchair\n")
    with h5py.File(place / "ply_data_train0.h5", "w") as file:
        file["data"] = np.array([pickle.dumps(Bomb(mark), 0)], dtype=object)
        file["label"] = np.zeros((1, 1))
    refused(ledger, mark, "ply_data_train0.h5", lambda: modelnet.load("train", root=root), DataError)
    as_pickle(place / "ply_data_train0.h5", mark)
    refused(ledger, mark, "ply_data_train0.h5", lambda: modelnet.load("train", root=root), DataError)


@pytest.mark.parametrize("place", ["alone", "bones", "trial", "array of objects"])
def test_published_positions_are_unpickled_without_running_anything(
    place: str, mark: Path, tmp_path: Path, ledger: Ledger
) -> None:
    """EGNO publishes its positions as a pickle."""
    bomb, bones, trial = Bomb(mark), [[n, n - 1] for n in range(1, 31)], np.zeros((4, 31, 3))
    content: Any = {
        "alone": bomb,
        "bones": (bomb, [trial]),
        "trial": (bones, [trial, bomb]),
        "array of objects": (bones, [np.array([bomb], dtype=object)]),
    }[place]
    path = tmp_path / "motion_run.pkl"
    path.write_bytes(pickle.dumps(content))
    refused(ledger, mark, str(path), lambda: mocap_published.read_published(path), DataError)
    refused(ledger, mark, str(path), lambda: mocap_published.get("run", tmp_path, file=path), DataError)


def test_an_archive_of_compressed_members_is_not_unpacked(tmp_path: Path) -> None:
    """torch.save stores members uncompressed; a small file could otherwise unpack to any size and fill the memory."""
    path = tmp_path / "large.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    assert path.stat().st_size < 20_000
    with pytest.raises(CheckpointError, match=r"large\.pt .*not stored as torch stores it"):
        er.load(torch.nn.Linear(2, 2), path)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    """A reader that refuses everything would pass the tests above."""
    root = write_subset(tmp_path)
    with pytest.raises(EquirelaxError, match="24 molecules"):
        qm9.load("train", root=root)
