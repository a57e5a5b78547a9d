"""MD17 and rMD17: splits, units, scaling, batches, errors, and official files from a server that the test runs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from equirelax_lab.cli import main
from equirelax_lab.data import MolecularFrames, md17
from equirelax_lab.data.molecules import force_scaling
from equirelax_lab.data.root import status
from file_server import Server
from md17_files import ETHANOL, frames, original, write_revised, write_xyz, xyz_text
from real_data import SAMPLES

from equirelax.errors import DataError

pytest.importorskip("ase")
FEW = (20, 10, 30)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xyz(tmp_path_factory.mktemp("md17"))


def load(
    split: str, root: Path, counts: tuple[int, int, int] = FEW, source: str = "rmd17"
) -> MolecularFrames:
    return md17.load(split, "ethanol", source, root, counts, dtype=torch.float64)


def test_splits_are_the_protocols_frames(root: Path) -> None:
    positions, _, _ = frames(1010)
    for split, chosen, of in (
        ("train", slice(20), frames(1010)),
        ("val", slice(950, 960), frames(1010)),
        ("test", slice(30), frames(40, seed=1)),
    ):
        found = load(split, root)
        assert torch.equal(found.numbers, torch.from_numpy(ETHANOL))
        for name, whole in zip(("positions", "energies", "forces"), of, strict=True):
            torch.testing.assert_close(getattr(found, name), torch.from_numpy(whole[chosen]))
    more = load("val", root, (1000, 10, 30))
    torch.testing.assert_close(more.positions, torch.from_numpy(positions[1000:1010]))


def test_positions_are_float32_and_energies_float64_unless_asked(root: Path) -> None:
    found = md17.load("train", "ethanol", root=root, counts=FEW)
    assert (found.positions.dtype, found.energies.dtype, found.forces.dtype) == (
        torch.float32,
        torch.float64,
        torch.float32,
    )


def test_the_scaling_is_of_the_training_frames_alone(root: Path) -> None:
    train, test = load("train", root), load("test", root)
    rms = float(train.forces.square().mean().sqrt())
    assert train.scaling.deviation == test.scaling.deviation == pytest.approx(rms)
    whole = train.batch(range(20))
    assert float(whole["energies"].mean()) == pytest.approx(0, abs=1e-9)
    assert float(whole["forces"].square().mean()) == pytest.approx(1)
    other = test.batch([4, 2])
    expected = (test.energies[[4, 2]] - train.energies.mean()) / rms
    torch.testing.assert_close(other["energies"], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(other["forces"], test.forces[[4, 2]].flatten(0, 1) / rms)
    assert float(other["deviation"]) == pytest.approx(rms)
    assert float(train.composition() @ train.scaling.references) == pytest.approx(
        float(train.energies.mean())
    )
    # of the smallest norm: proportional to the numbers of atoms
    references = train.scaling.references
    assert float(references[1]) == pytest.approx(3 * float(references[6]))


def test_forces_that_vanish_and_single_frames_can_be_scaled() -> None:
    still = MolecularFrames(
        torch.from_numpy(ETHANOL), torch.zeros(1, 9, 3), torch.ones(1).double(), torch.zeros(1, 9, 3)
    )
    assert force_scaling(still).deviation == 1
    with pytest.raises(DataError, match="no molecules"):
        force_scaling(still.subset([]))


def test_batches(root: Path) -> None:
    data = load("train", root)
    batch = data.batch([3, 7])
    assert batch["graph"].tolist() == [0] * 9 + [1] * 9
    assert torch.equal(batch["numbers"], torch.from_numpy(np.tile(ETHANOL, 2)))
    torch.testing.assert_close(batch["positions"], data.positions[[3, 7]].flatten(0, 1))
    turns = torch.linalg.qr(torch.randn(2, 3, 3, dtype=torch.float64))[0]
    turned = data.batch([3, 7], turns)
    for k in range(2):
        mine = slice(9 * k, 9 * k + 9)
        for name in ("positions", "forces"):
            torch.testing.assert_close(turned[name][mine], batch[name][mine] @ turns[k].T)
    torch.testing.assert_close(turned["energies"], batch["energies"])
    once = data.batch([3, 7], turns[0])
    torch.testing.assert_close(once["positions"], batch["positions"] @ turns[0].T)


def test_subsets_and_moves_keep_the_scaling(root: Path) -> None:
    data = load("train", root)
    part = data.subset(torch.tensor([5, 1])).to(dtype=torch.float32)
    assert (len(part), part.atoms, part.positions.dtype) == (2, 9, torch.float32)
    torch.testing.assert_close(part.batch([1])["energies"], data.batch([1])["energies"])
    assert str(part.device) == "cpu"


def test_wrong_shapes_are_refused() -> None:
    numbers, where = torch.from_numpy(ETHANOL), torch.zeros(2, 9, 3)
    with pytest.raises(DataError, match=r"forces must have the shape \(2, 9, 3\)"):
        MolecularFrames(numbers, where, torch.zeros(2).double(), torch.zeros(2, 8, 3))
    with pytest.raises(DataError, match="float64"):
        MolecularFrames(numbers, where, torch.zeros(2), where)
    with pytest.raises(DataError, match="atomic numbers"):
        MolecularFrames(0 * numbers, where, torch.zeros(2).double(), where)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "Unknown split 'dev'"),
        ({"molecule": "ethanal"}, "Did you mean 'ethanol'"),
        ({"source": "md18"}, "Unknown source 'md18'"),
        ({"counts": (0, 1, 1)}, "at least 1"),
        ({"counts": (1011, 1, 1)}, "train split takes 1011 frames, and .*ethanol_train.xyz has 1010"),
        ({"split": "val", "counts": (10, 61, 1)}, "val split takes 61 frames after the first 950"),
        ({"split": "test", "counts": (10, 10, 41)}, "test split takes 41 frames"),
        ({"molecule": "aspirin"}, "rmd17_aspirin_train.xyz is missing.*equirelax data get rmd17"),
        ({"source": "md17"}, "md17_ethanol.npz is missing.*data get md17 --molecule ethanol"),
    ],
)
def test_refused_arguments(arguments: dict[str, object], message: str, root: Path) -> None:
    with pytest.raises(DataError, match=message):
        md17.load(**{"split": "train", "molecule": "ethanol", "root": root, **arguments})  # type: ignore[arg-type]


def damaged(text: str, kind: str) -> str:
    lines = text.splitlines()
    if kind == "truncated within a frame":
        return "\n".join(lines[:-3])
    if kind == "truncated within a line":
        return text[:-60]
    if kind == "NaN":
        lines[13] = lines[13].replace(lines[13].split()[2], "nan")
    if kind == "NaN force":
        lines[24] = " ".join([*lines[24].split()[:-1], "nan"])
    if kind == "wrong atom":
        lines = [line.replace("O ", "N ") for line in lines]
    if kind == "other order":
        lines[13], lines[15] = lines[15], lines[13]
    if kind == "no forces":
        lines = [
            line.replace(":forces:R:3", "") if "=" in line else " ".join(line.split()[:4]) for line in lines
        ]
    if kind == "no energy":
        lines[12] = lines[12].split(" energy")[0]
    if kind == "energy that is none":
        lines[12] = lines[12].replace("energy=", "energy=about")
    if kind == "html":
        lines = ["<html>404</html>"]
    return "\n".join(lines) + "\n" * (kind != "empty") if kind != "empty" else ""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated within a frame", "after 2 frames .* ends too early"),
        ("truncated within a line", "after 2 frames"),
        ("NaN", "positions of frame 1 hold NaN"),
        ("NaN force", "forces of frame 2 hold NaN"),
        ("wrong atom", r"ethanol has the atoms \{1: 6, 6: 2, 8: 1\}.*the file has"),
        ("other order", "frame 1 has other atoms, or in another order"),
        ("no forces", "frame 0 has no forces"),
        ("no energy", "frame 1 has no energy"),
        ("energy that is none", "after 1 frames it is not extended XYZ"),
        ("html", "not extended XYZ"),
        ("empty", "no frames|not extended XYZ"),
    ],
)
def test_damaged_frames_are_named(kind: str, message: str, tmp_path: Path) -> None:
    path = write_xyz(tmp_path, 3, 3) / "md17" / "rmd17_ethanol_train.xyz"
    path.write_text(damaged(xyz_text(3), kind))
    with pytest.raises(DataError, match=message) as caught:
        load("train", tmp_path, (1, 1, 1))
    assert str(path) in str(caught.value)
    assert "Get the file again" in str(caught.value)


def test_test_frames_with_another_order_of_atoms_are_refused(tmp_path: Path) -> None:
    path = write_xyz(tmp_path, 3, 3) / "md17" / "rmd17_ethanol_test.xyz"
    lines = path.read_text().splitlines()
    for start in (2, 13, 24):
        lines[start], lines[start + 2] = lines[start + 2], lines[start]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="another order"):
        load("test", tmp_path, (1, 1, 1))


def test_without_ase(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ase.io", None)
    with pytest.raises(DataError, match=r"pip install \"ase"):
        load("train", root)


def test_official_revised_archive(tmp_path: Path) -> None:
    train, test = list(range(1000, 0, -1)), list(range(1050, 2050))
    write_revised(tmp_path / "md17" / "rmd17", train, test)
    positions, energies, forces = frames(2100)
    kcal = 0.043364104  # eV of a kcal/mol
    found = {split: load(split, tmp_path, (950, 50, 1000)) for split in md17.SPLITS}
    assert {split: len(part) for split, part in found.items()} == {"train": 950, "val": 50, "test": 1000}
    for split, index in (("train", train[:950]), ("val", train[950:]), ("test", test)):
        torch.testing.assert_close(found[split].positions, torch.from_numpy(positions[index]))
        torch.testing.assert_close(
            found[split].energies, torch.from_numpy(energies[index] * kcal), rtol=1e-8, atol=0
        )
        torch.testing.assert_close(
            found[split].forces, torch.from_numpy(forces[index] * kcal), rtol=1e-8, atol=0
        )
    (tmp_path / "md17" / "rmd17" / "splits" / "index_train_01.csv").write_text("5\n2100\n")
    with pytest.raises(DataError, match="frames that are not there"):
        load("train", tmp_path, (1, 1, 1))


def test_random_frames_are_drawn_from_all_of_the_official_archive(tmp_path: Path) -> None:
    """Not from those alone that its splits name."""
    write_revised(tmp_path / "md17" / "rmd17", [0, 1, 2], [3, 4], count=60)
    drawn = [
        md17.load(split, "ethanol", "rmd17", tmp_path, (20, 10, None), dtype=torch.float64, frames="random")
        for split in md17.SPLITS
    ]
    assert [len(part) for part in drawn] == [20, 10, 30]
    seen = torch.cat([part.positions for part in drawn])[:, 0, 0]
    assert torch.equal(seen.sort().values, torch.from_numpy(frames(60)[0][:, 0, 0]).sort().values)
    with pytest.raises(DataError, match=r"rmd17_ethanol\.npz has 60 frames"):
        md17.load("train", "ethanol", "rmd17", tmp_path, (50, 11, 1), frames="random")


def test_original_trajectories_are_shuffled_and_no_frame_is_tested_that_was_trained(tmp_path: Path) -> None:
    (tmp_path / "md17").mkdir()
    np.savez(tmp_path / "md17" / "md17_ethanol.npz", **original())
    parts = [load(split, tmp_path, (950, 50, 1000), "md17") for split in md17.SPLITS]
    seen = torch.cat([part.positions[:, 0, 0] for part in parts])
    assert len(seen.unique()) == 2000
    assert not torch.equal(parts[0].positions[:5], torch.from_numpy(frames(2100)[0][:5]))
    again = load("train", tmp_path, (950, 50, 1000), "md17")
    assert torch.equal(again.positions, parts[0].positions)
    with pytest.raises(DataError, match="1100 frames after the first 950"):
        load("val", tmp_path, (950, 1100, 1000), "md17")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"R": np.zeros((3, 9, 3))}, r"positions must have the shape \(4, 9, 3\)"),
        ({"z": ETHANOL[::-1][1:]}, "ethanol has the atoms"),
        ({"F": np.full((4, 9, 3), np.inf)}, "forces of frame 0 hold NaN or infinity"),
        ({"F": None}, "the arrays F are missing"),
    ],
)
def test_damaged_official_files(change: dict[str, np.ndarray | None], message: str, tmp_path: Path) -> None:
    arrays = {k: v for k, v in {**original(4), **change}.items() if v is not None}
    (tmp_path / "md17").mkdir()
    np.savez(tmp_path / "md17" / "md17_ethanol.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load("train", tmp_path, (1, 1, 1), "md17")


def test_the_command_fetches_a_molecule_and_refuses_what_is_no_file_of_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **original(4))
    target = tmp_path / "md17" / "md17_ethanol.npz"
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    monkeypatch.setattr(md17, "MD17_URLS", (server.url,))
    words = ["data", "get", "md17", "--molecule", "ethanol", "--data", str(tmp_path)]
    for content, message in (
        (b"", "404"),
        (b"<html>", "not a readable .npz"),
        (buffer.getvalue()[:-99], "npz"),
    ):
        server.content = content
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert str(target) in error
        assert not list((tmp_path / "md17").glob("*.npz*"))
    server.content = buffer.getvalue()
    assert main(words) == 0
    assert str(target) in capsys.readouterr().out
    assert len(load("train", tmp_path, (2, 1, 1), "md17")) == 2
    server.content = b""
    assert main(words) == 0  # it is there
    assert main([*words, "--force"]) == 2
    assert target.exists()  # a failed try leaves what was there
    assert main(["data", "get", "md17", "--data", str(tmp_path)]) == 2
    assert "--molecule" in capsys.readouterr().err
    assert main([*words, "--archive", "x.zip"]) == 2
    assert main(["data", "get", "mnist", "--molecule", "ethanol"]) == 2
    assert "--molecule" in capsys.readouterr().err


def test_status_knows_every_form(tmp_path: Path) -> None:
    def there(name: str) -> bool:
        return {row.name: row for row in status(tmp_path)}[name].available

    assert not there("rmd17")
    assert not there("md17")
    write_xyz(tmp_path, 1, 1)
    assert there("rmd17")
    np.savez(tmp_path / "md17" / "md17_aspirin.npz", a=np.zeros(1))
    assert there("md17")


def test_real_frames() -> None:
    train, test = (
        md17.load(split, "ethanol", root=SAMPLES, counts=(64, 1, None), dtype=torch.float64)
        for split in ("train", "test")
    )
    assert (len(train), len(test), train.atoms) == (64, 32, 9)
    assert 0.9 < train.scaling.deviation < 1.5
    # the forces of an isolated molecule add up to nothing
    assert float(train.forces.sum(1).abs().max()) < 1e-2
    # no training frame is tested
    assert float(torch.cdist(train.positions.flatten(1), test.positions.flatten(1)).min()) > 1e-3
