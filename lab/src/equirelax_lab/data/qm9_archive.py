"""QM9 as its authors published it (figshare collection 978904, CC0), converted to the files that `qm9.load` reads.

The archive holds 133,885 molecules, one text file each:

    number of atoms
    gdb, number, A, B, C (GHz), mu, alpha, homo, lumo, gap, r2, zpve, U0, U, H, G, Cv
    element, x, y, z (Angstrom), Mulliken charge        for every atom
    frequencies, SMILES and InChI, which are left out

3,054 of them are listed as inconsistent with their formula and left out, as is usual. The others are in `qm9.npz`, and the
16,771 of them listed in `qm9_subset.txt` are in `qm9_subset.npz`.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import IO

import numpy as np

from equirelax.errors import DataError
from equirelax.files import sha256
from equirelax_lab.data.archive import write_archive
from equirelax_lab.data.download import fetch
from equirelax_lab.data.qm9 import FULL, SUBSET
from equirelax_lab.data.root import command, search_roots, writable_root

MOLECULES = "dsgdb9nsd.xyz.tar.bz2"
EXCLUDED = "uncharacterized.txt"
URLS: Mapping[str, str] = {
    MOLECULES: "https://ndownloader.figshare.com/files/3195389",
    EXCLUDED: "https://ndownloader.figshare.com/files/3195404",
}
SHA256: Mapping[str, str] = {  # those that TensorFlow Datasets checks
    MOLECULES: "3a63848ac80691bdb8d41834b575afad345b9300d7a2db0c38adb7f6eaa8360c",
    EXCLUDED: "3aa5115d540b356de94791d4a74c3bf1ed91c469ecf52a4f5d7cc0506fe02e24",
}
TOTAL = 133_885
TARGETS = (
    "A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u298", "h298", "g298", "cv",
)  # fmt: skip
"""Columns of the second line, in hartree, debye, a0^3, a0^2, GHz and cal/(mol K)."""
ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
Arrays = dict[str, np.ndarray]
Progress = Callable[[int, int], object]


def get(
    root: str | os.PathLike[str] | None = None,
    *,
    file: Path | None = None,
    url: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Return the files `qm9.npz` and `qm9_subset.npz`. If one is missing, download the archive (86 MB) and write both.

    Args:
        root: See `equirelax_lab.data.root`.
        file: The archive, obtained in another way, with `uncharacterized.txt` beside it. Nothing is downloaded then.
        url: Another address of the archive.
        force: Download and write again, even if the files are there.
        progress: Called with the number of molecules that were read, and their total.

    Raises:
        DataError: The files could not be obtained, or are not the published ones. The message says what to do.
    """
    if not force and file is None and url is None:
        for folder in search_roots(root):
            there = [folder / FULL, folder / SUBSET]
            if all(path.is_file() for path in there):
                return there
    home = writable_root(root)
    folder = (home / FULL).parent if file is None else file.parent
    sources = {MOLECULES: folder / MOLECULES if file is None else file, EXCLUDED: folder / EXCLUDED}
    try:
        for name, path in sources.items():
            if file is None:
                fetch(url if url and name == MOLECULES else URLS[name], path, known_sha256=SHA256[name])
            elif not path.is_file():
                raise DataError(f"There is no file {path}.")
            elif (found := sha256(path)) != SHA256[name]:
                raise DataError(
                    f"{path} is not the published {name}: its SHA-256 is {found}, expected {SHA256[name]}."
                )
    except DataError as error:
        addresses = " and ".join(f"{address} ({name})" for name, address in URLS.items())
        raise DataError(
            f"{error} Get both files in another way, {addresses}, put them into one folder, and pass the first: "
            f"{command('equirelax data get qm9 --archive PATH', root)}"
        ) from error
    everything = read(sources[MOLECULES], read_excluded(sources[EXCLUDED]), progress)
    about = {
        "origin": url or URLS[MOLECULES] if file is None else str(file),
        "archive_sha256": SHA256[MOLECULES],
    }
    paths = [home / FULL, home / SUBSET]
    for path, arrays in zip(paths, (everything, select(everything, subset_numbers())), strict=True):
        write_archive(path, arrays, about)
    if file is None:
        for path in sources.values():
            path.unlink()
    return paths


def subset_numbers() -> np.ndarray:
    """The numbers in QM9 of the subset's molecules, ascending: (16771,)."""
    text = resources.files("equirelax_lab.data").joinpath("qm9_subset.txt").read_text(encoding="ascii")
    return np.cumsum([int(word) for word in text.split()])


def read_excluded(path: Path) -> frozenset[int]:
    """Read the numbers of the molecules that are left out: the first word of every line that begins with a number.

    Raises:
        DataError: The file is unreadable.
    """
    try:
        lines = path.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    words = (line.split() for line in lines)
    return frozenset(int(line[0]) for line in words if line and line[0].isdecimal())


def read(path: Path, excluded: frozenset[int] = frozenset(), progress: Progress | None = None) -> Arrays:
    """Read the molecules of the archive, ordered by number.

    Returns:
        gdb_id (N,), n_atoms (N,), Z (atoms,), R (atoms, 3) float32 in Angstrom, targets (N, 15) float64 and target_names (15,).

    Raises:
        DataError: The archive is damaged, or a file in it is not as expected; the message names it.
    """
    rows: list[tuple[int, list[int], np.ndarray, list[float]]] = []
    try:
        for done, (name, text) in enumerate(_texts(path), start=1):
            row = _molecule(text, f"{path}: {name}")
            if row[0] not in excluded:
                rows.append(row)
            if progress is not None and (done % 1000 == 0 or done == TOTAL):
                progress(done, TOTAL)
    # A damaged archive raises errors of many types: TarError, EOFError, OSError, ...
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be unpacked ({' '.join(str(error).split())}).") from error
    if not rows:
        raise DataError(f"{path} holds no molecules; it is another archive.")
    rows.sort(key=lambda row: row[0])
    numbers, elements, positions, targets = zip(*rows, strict=True)
    return {
        "gdb_id": np.array(numbers, dtype=np.int32),
        "n_atoms": np.array([len(atoms) for atoms in elements], dtype=np.int16),
        "Z": np.concatenate(elements).astype(np.uint8),
        "R": np.concatenate(positions),
        "targets": np.array(targets),
        "target_names": np.array(TARGETS),
    }


def select(molecules: Mapping[str, np.ndarray], numbers: Sequence[int] | np.ndarray) -> Arrays:
    """The molecules with these numbers, in the order of the file. Raise `DataError` if one is missing."""
    chosen = np.isin(molecules["gdb_id"], numbers)
    if missing := len(numbers) - int(chosen.sum()):
        raise DataError(f"{missing} of the {len(numbers)} molecules of the subset are not in the archive.")
    atoms = np.repeat(chosen, molecules["n_atoms"])
    rows = {name: molecules[name][chosen] for name in ("gdb_id", "n_atoms", "targets")}
    return {
        "gdb_id": rows["gdb_id"],
        "n_atoms": rows["n_atoms"],
        "Z": molecules["Z"][atoms],
        "R": molecules["R"][atoms],
        "targets": rows["targets"],
        "target_names": molecules["target_names"],
    }


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """The name and the text of every molecule's file, one at a time."""
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".xyz"):
                file: IO[bytes] | None = archive.extractfile(member)
                if file is None:
                    raise DataError(f"{path}: {member.name} is no regular file. Download the archive again.")
                yield member.name, file.read().decode("latin-1")


def _molecule(text: str, where: str) -> tuple[int, list[int], np.ndarray, list[float]]:
    """Number, atomic numbers (n), positions (n, 3) float32 and targets."""
    lines = text.replace("*^", "e").splitlines()  # Mathematica's exponents
    try:
        count = int(lines[0])
        words = lines[1].split()
        atoms = [line.split() for line in lines[2 : 2 + count]]
        elements = [ELEMENTS[atom[0]] for atom in atoms]
        positions = [[float(word) for word in atom[1:4]] for atom in atoms]
        targets = [float(word) for word in words[2:]]
        if len(atoms) != count or len(targets) != len(TARGETS) or any(len(place) != 3 for place in positions):
            raise ValueError("a line is missing or too short")
        return int(words[1]), elements, np.array(positions, dtype=np.float32), targets
    except (ValueError, IndexError, KeyError) as error:
        raise DataError(f"{where} is not a molecule of QM9 ({error}).") from error
