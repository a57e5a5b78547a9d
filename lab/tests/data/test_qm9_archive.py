"""QM9's published archive: one file of it as it is, and real molecules written as it writes them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from equirelax_lab.data import qm9, qm9_archive
from equirelax_lab.data.archive import load_npz
from equirelax_lab.data.qm9_archive import EXCLUDED, MOLECULES, TARGETS
from real_data import SAMPLES

from equirelax.errors import DataError

METHANE = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 0.0002765748\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""  # noqa: E501
SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
Arrays = dict[str, np.ndarray]


def sample() -> Arrays:
    """260 real molecules."""
    return load_npz(SAMPLES / qm9.SUBSET, SAMPLES)


def text_of(molecules: Arrays, index: int) -> str:
    """A molecule as the archive writes it; coordinates below 1e-5 with Mathematica's exponent."""
    start = int(molecules["n_atoms"][:index].sum())
    rows = slice(start, start + int(molecules["n_atoms"][index]))
    names = molecules["target_names"].tolist()
    values = [repr(float(molecules["targets"][index, names.index(name)])) for name in TARGETS]
    lines = [str(rows.stop - rows.start), f"gdb {molecules['gdb_id'][index]}\t" + "\t".join(values)]
    for number, place in zip(molecules["Z"][rows], molecules["R"][rows].astype(float), strict=True):
        words = [f"{x:.8e}".replace("e", "*^") if abs(x) < 1e-5 else f"{x:.10f}" for x in place]
        lines.append(f"{SYMBOLS[int(number)]}\t" + "\t".join(words) + "\t0.1")
    return "\n".join([*lines, "1000.0\t1100.0", "C\tC", "InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4", ""])


def write_archive(folder: Path, texts: list[str]) -> Path:
    with tarfile.open(folder / MOLECULES, "w:bz2") as archive:
        for number, text in enumerate(texts):
            entry = tarfile.TarInfo(f"dsgdb9nsd_{number:06}.xyz")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return folder / MOLECULES


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sample's molecules as an archive in the order of their text, and a list that excludes two of them."""
    molecules = sample()
    path = write_archive(tmp_path, sorted(text_of(molecules, n) for n in range(40)))
    excluded = molecules["gdb_id"][[3, 7]]
    lines = ["List of uncharacterized molecules", "  index  energy"] + [f"  {n}  -1.0  x" for n in excluded]
    (tmp_path / EXCLUDED).write_text("\n".join([*lines, "------", ""]))
    sums = {n: hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in (MOLECULES, EXCLUDED)}
    monkeypatch.setattr(qm9_archive, "SHA256", sums)
    monkeypatch.setattr(qm9_archive, "subset_numbers", lambda: molecules["gdb_id"][10:30])
    return path


def test_a_file_of_the_archive(tmp_path: Path) -> None:
    """Methane, the first molecule, exactly as published, against the subset."""
    read, expected = qm9_archive.read(write_archive(tmp_path, [METHANE])), sample()
    assert read["gdb_id"].tolist() == [1]
    assert read["Z"].tolist() == expected["Z"][:5].tolist() == [6, 1, 1, 1, 1]
    np.testing.assert_allclose(read["R"], expected["R"][:5], atol=1e-7)
    columns = [expected["target_names"].tolist().index(name) for name in TARGETS]
    np.testing.assert_allclose(read["targets"][0], expected["targets"][0, columns], rtol=1e-9)


def test_molecules_come_back_and_are_loaded(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, expected = tmp_path / "root", sample()
    full, subset = qm9_archive.get(root, file=archive)
    arrays = load_npz(full, full)
    kept = np.delete(np.arange(40), [3, 7])
    assert arrays["gdb_id"].tolist() == expected["gdb_id"][kept].tolist()
    assert arrays["n_atoms"].tolist() == expected["n_atoms"][kept].tolist()
    atoms = np.isin(np.repeat(np.arange(260), expected["n_atoms"]), kept)
    assert np.array_equal(arrays["Z"], expected["Z"][atoms])
    np.testing.assert_allclose(arrays["R"], expected["R"][atoms], atol=1e-7)
    columns = [expected["target_names"].tolist().index(name) for name in TARGETS]
    assert np.array_equal(arrays["targets"], expected["targets"][kept][:, columns])
    assert load_npz(subset, subset)["gdb_id"].tolist() == expected["gdb_id"][10:30].tolist()
    assert archive.exists()
    monkeypatch.setattr(qm9, "SUBSET_TRAIN", 12)
    monkeypatch.setattr(qm9, "SUBSET_VAL", 3)
    assert [len(qm9.load(split, root=root)) for split in qm9.SPLITS] == [12, 3, 5]
    assert [len(qm9.load(split, source="full", root=root)) for split in qm9.SPLITS] == [30, 4, 4]


def test_the_command_says_where_and_what_to_do(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from equirelax_lab.cli import main

    words = ["data", "get", "qm9", "--data", str(tmp_path / "root")]
    assert main([*words, "--archive", str(archive)]) == 0
    assert "qm9_subset.npz" in capsys.readouterr().out
    assert main(words) == 0  # there: nothing is asked for
    assert str(tmp_path / "root" / "qm9") in capsys.readouterr().out
    (archive.parent / EXCLUDED).unlink()
    assert main([*words, "--archive", str(archive)]) == 2
    error = capsys.readouterr().err
    assert "uncharacterized.txt" in error
    assert "ndownloader.figshare.com/files/3195404" in error


def test_other_and_damaged_archives_are_named(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-200])
    with pytest.raises(DataError, match="is not the published dsgdb9nsd"):
        qm9_archive.get(tmp_path / "root", file=archive)
    with pytest.raises(DataError, match="cannot be unpacked"):
        qm9_archive.read(archive)
    for text in (
        "",
        METHANE.replace("C\t-0.01", "Q\t-0.01"),
        METHANE.replace("\t6.469", ""),
        "9" + METHANE[1:],
    ):
        with pytest.raises(DataError, match=r"dsgdb9nsd_000000\.xyz is not a molecule of QM9"):
            qm9_archive.read(write_archive(tmp_path, [text]))
    with pytest.raises(DataError, match="holds no molecules"):
        qm9_archive.read(write_archive(tmp_path, []))
    with pytest.raises(DataError, match="2 of the 2 molecules"):
        qm9_archive.select(sample(), [2, 3])


def test_the_numbers_of_the_subset() -> None:
    numbers = qm9_archive.subset_numbers()
    assert len(numbers) == 16_771
    assert bool((np.diff(numbers) > 0).all())
    assert numbers[-1] <= qm9_archive.TOTAL
    assert set(sample()["gdb_id"].tolist()) <= set(numbers.tolist())
