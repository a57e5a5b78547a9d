"""Damaged data files and run files: an error that names the file, or the same content; never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import cut, flipped_at_random, note, outcomes, overwritten
from equirelax_lab.cli import main
from equirelax_lab.data import qm9, rotmnist
from equirelax_lab.data.archive import SUMS, check_sum, write_sums
from equirelax_lab.training.dynamics import read_metrics
from equirelax_lab.training.folder import CONFIG, METRICS, RESULT, changed_settings, read_result
from equirelax_lab.training.machine import Machine
from equirelax_lab.training.run import train
from fault_ledger import Ledger
from sample_data import SAMPLES, SIZES, make, tensors

from equirelax.errors import DataError
from equirelax.files import sha256

QUICK, MANY = 8, 400
BIT, CUT, BURST = "bit flipped in a data file", "data file cut short", "bytes of a data file overwritten"
CASES = [(name, file) for name, sample in SAMPLES.items() for file in sample.files]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(rotmnist, "SIZES", SIZES)
    monkeypatch.setattr(qm9, "SUBSET_TRAIN", 14)
    monkeypatch.setattr(qm9, "SUBSET_VAL", 4)


@pytest.mark.parametrize("times", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "file"), CASES, ids=[f"{n}-{Path(f).name}" for n, f in CASES])
def test_data_files(name: str, file: str, times: int, tmp_path: Path, ledger: Ledger) -> None:
    root = make(SAMPLES[name], tmp_path / "data")
    path = root / file
    content = path.read_bytes()

    def read() -> Any:
        return tensors(SAMPLES[name].load(root))

    assert read(), "nothing was loaded"
    note(ledger, BIT, outcomes(path, flipped_at_random(content, times, seed=times), read))
    # a manifest without its last line feed is as good as with it
    cuts = outcomes(path, cut(content, times // 2, seed=1), read)
    assert cuts.same <= (path.suffix == ".json")
    note(ledger, CUT, cuts)
    note(ledger, BURST, outcomes(path, overwritten(content, times // 2, seed=2), read))


def spoilt(array: np.ndarray) -> list[np.ndarray]:
    """Arrays that do not fit in the place of `array`."""
    found = [
        array[..., None],
        array[:0] if array.ndim else np.zeros(0),
        array.astype(str),
        np.zeros((2, 2, 2, 2)),
    ]
    found += [array.astype(complex)] if array.dtype.kind in "iuf" else [np.zeros(array.shape)]
    if array.ndim and len(array) > 1:
        found += [array[:-1], np.concatenate([array, array])]
    if array.dtype.kind == "f":
        found += [np.full_like(array, np.nan), np.full_like(array, np.inf)]
    if array.dtype.kind in "iu":
        found += [np.full_like(array, np.iinfo(array.dtype).max), array.astype(float) + 0.5]
    return found


def checked_otherwise(name: str) -> bool:
    """Whether a set has a manifest, so that any change of its arrays changes the checksum."""
    return name.startswith(("nbody", "smoke"))


NPZ = [(n, f) for n, f in CASES if f.endswith(".npz") and not checked_otherwise(n)]
UNREAD = {
    "test_xyz",
    "test_y",
    "joints",
    "val_start",
    "val_trial",
    "test_start",
    "test_trial",
    "edges",
    "train_start",
}


@pytest.mark.parametrize(("name", "file"), NPZ, ids=[f"{n}-{Path(f).name}" for n, f in NPZ])
def test_other_shapes_and_types(name: str, file: str, tmp_path: Path, ledger: Ledger) -> None:
    """An intact file with other arrays is refused by name if they do not fit, and else loaded."""
    root = make(SAMPLES[name], tmp_path / "data")
    (root / SUMS).unlink(missing_ok=True)
    path = root / file
    with np.load(path) as archive:
        arrays = dict(archive)
    refused, unclear = 0, []
    for key, array in arrays.items():
        changes = [{**arrays, key: other} for other in spoilt(array)]
        changes.append({k: v for k, v in arrays.items() if k != key})
        for number, changed in enumerate(changes):
            np.savez(path, **changed)
            try:
                tensors(SAMPLES[name].load(root))
            except DataError as error:
                refused += path.name in str(error)
                unclear += [] if path.name in str(error) else [f"{key} {number}: {error}"]
            # a traceback is what must not be: of whatever type
            except Exception as error:
                unclear.append(f"{key} {number}: {type(error).__name__}: {error}")
    ledger.note("data file of another shape", survived=True, times=refused)
    if unclear:
        ledger.note("data file of another shape", survived=False, times=len(unclear))
    assert unclear == []
    assert refused >= 2 * len(arrays)


def test_sums(tmp_path: Path) -> None:
    """SHA256SUMS in the file's folder or above it, as `sha256sum` writes it."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = folder / "x.txt"
    path.write_text("1\n")
    check_sum(path)  # listed nowhere
    digest = sha256(path)
    for line in (f"{digest}  ./a/b/x.txt", f"{digest.upper()} *a/b/x.txt", "no sum\n\nx"):
        (tmp_path / SUMS).write_text(f"{line}\n")
        check_sum(path)
    write_sums(tmp_path)
    assert f"{digest}  a/b/x.txt\n" in (tmp_path / SUMS).read_text()
    path.write_text("2\n")
    with pytest.raises(DataError, match=rf"x\.txt is damaged or was changed: .*{SUMS} says {digest}"):
        check_sum(path)
    path.unlink()
    with pytest.raises(DataError, match=r"x\.txt cannot be read"):
        check_sum(path)


@pytest.fixture(scope="module")
def run(tiny_root: Path, tiny_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "ace-seed0"
    config = tiny_config("ace", network={"layers": 1, "hidden": 4}, epochs=2)
    train(config, folder, tiny_root, machine=Machine(progress=False, tensorboard=False))
    return folder


@pytest.mark.parametrize("name", [RESULT, CONFIG, METRICS])
@pytest.mark.parametrize("times", [QUICK, pytest.param(300, marks=pytest.mark.slow)])
def test_files_of_a_run(
    name: str, times: int, run: Path, tiny_config: Callable[..., Any], tmp_path: Path, ledger: Ledger
) -> None:
    """Text that people may read and change has no checksum: what still reads as such a file is taken for what it says;
    everything else is an error that names the file.
    """
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = tiny_config("ace", network={"layers": 1, "hidden": 4}, epochs=2)
    read: dict[str, Callable[[], Any]] = {
        RESULT: lambda: read_result(folder / RESULT),
        CONFIG: lambda: changed_settings(config, folder),
        METRICS: lambda: read_metrics(folder / METRICS, 2),
    }
    content = (folder / name).read_bytes()
    kinds = (("flipped", flipped_at_random(content, times, 3, len(content))), ("cut", cut(content, times, 3)),
             ("overwritten", overwritten(content, times, 3)))  # fmt: skip
    for _, damaged in kinds:
        found = outcomes(folder / name, damaged, read[name], name)
        lost = [words for words in found.other if "other content" not in words]
        ledger.note(
            "damaged file of a run",
            survived=True,
            times=found.refused + found.same + len(found.other) - len(lost),
        )
        if lost:
            ledger.note("damaged file of a run", survived=False, times=len(lost))
        assert lost == []


@pytest.mark.parametrize("name", [RESULT, CONFIG, METRICS])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"[1, 2]", b'{"a": 1}'])
def test_the_command_line_names_damaged_files_of_a_run(
    name: str, content: bytes, run: Path, tiny_root: Path, tmp_path: Path, ledger: Ledger,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / name).write_bytes(content)
    commands = [["report", str(folder)], ["symmetry", str(folder), "--data", str(tiny_root)]]
    if name != METRICS:  # it is written anew
        resume = ["--out", str(folder), "--resume", "--data", str(tiny_root), "--progress=false"]
        commands.append(["train", "nbody", "--config", str(run / CONFIG), *resume])
    for words in commands:
        code = main(words)
        said = capsys.readouterr()
        # symmetry and report of a finished run take its settings from result.json
        fine = (code == 2 and str(folder) in said.err and "Traceback" not in said.err) or (
            code == 0 and name == CONFIG and words[0] != "train"
        )
        ledger.note("damaged file of a run", survived=fine)
        assert fine, (words, code, said.err)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"runs": 3}', '{"runs": {"a": 1}}', "\0"])
def test_a_damaged_journal_of_a_study_is_named(
    content: str, tmp_path: Path, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.json").write_text(content)
    code = main(["study", "show", str(tmp_path)])
    said = capsys.readouterr().err
    ledger.note("damaged file of a study", survived=code == 2 and "study.json" in said)
    assert code == 2
    assert "study.json" in said


def test_a_file_of_a_study_that_is_whole(tmp_path: Path) -> None:
    """A reader that refuses everything would pass the test above."""
    runs = {"a": {"status": "waiting", "attempts": 0, "reason": ""}}
    (tmp_path / "study.json").write_text(
        json.dumps({"name": "x", "title": "x", "small": False, "runs": runs})
    )
    assert main(["study", "show", str(tmp_path)]) in (0, 1)
