"""The files that MD17 and its revision come in, each read into the same form: Angstrom, eV, eV/Angstrom.

Below the data root, in the folder md17:

- `rmd17_MOLECULE_train.xyz`, `rmd17_MOLECULE_test.xyz`: frames of the revised set as extended XYZ in eV; read with ASE.
- `rmd17/`: the official archive of the revised set (Christensen and von Lilienfeld, 2020), kcal/mol: `npz_data/*.npz` of 100,000
  frames a molecule (azobenzene 99,988), `splits/index_train_01.csv` and `index_test_01.csv`, the first of its five splits.
- `md17_MOLECULE.npz`: the original set (Chmiela et al., Science Advances 3, e1603015, 2017), a trajectory, kcal/mol;
  `equirelax data get md17` fetches it. Frames are shuffled with a fixed seed before they are split.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from equirelax.errors import DataError
from equirelax.files import did_you_mean
from equirelax_lab.data.archive import load_npz
from equirelax_lab.data.download import RMD17, Progress, fetch
from equirelax_lab.data.root import find, search_roots, writable_root
from equirelax_lab.data.sums import check_sum

FOLDER = Path("md17")
SOURCES = ("rmd17", "md17")
EV_PER_KCAL_MOL = 4184 / 96485.33212331
"""A thermochemical kilocalorie per mole; CODATA 2018."""
SHUFFLE_SEED = 0
"""Of the original trajectories' order."""
MD17_URLS = (
    "http://www.quantum-machine.org/gdml/data/npz/{}",
    "http://quantum-machine.org/gdml/data/npz/{}",
)


@dataclass(frozen=True)
class Molecule:
    """Formula {atomic number: atoms}, and the names of its files in the two official sets."""

    formula: Mapping[int, int]
    revised: str
    original: str


def _molecule(revised: str, original: str, **atoms: int) -> Molecule:
    numbers = {"h": 1, "c": 6, "n": 7, "o": 8}
    return Molecule({numbers[k]: v for k, v in atoms.items()}, f"rmd17_{revised}.npz", original)


MOLECULES: Mapping[str, Molecule] = {
    "aspirin": _molecule("aspirin", "md17_aspirin.npz", c=9, h=8, o=4),
    "azobenzene": _molecule("azobenzene", "azobenzene_dft.npz", c=12, h=10, n=2),
    "benzene": _molecule("benzene", "md17_benzene2017.npz", c=6, h=6),
    "ethanol": _molecule("ethanol", "md17_ethanol.npz", c=2, h=6, o=1),
    "malonaldehyde": _molecule("malonaldehyde", "md17_malonaldehyde.npz", c=3, h=4, o=2),
    "naphthalene": _molecule("naphthalene", "md17_naphthalene.npz", c=10, h=8),
    "paracetamol": _molecule("paracetamol", "paracetamol_dft.npz", c=8, h=9, n=1, o=2),
    "salicylic": _molecule("salicylic", "md17_salicylic.npz", c=7, h=6, o=3),
    "toluene": _molecule("toluene", "md17_toluene.npz", c=7, h=8),
    "uracil": _molecule("uracil", "md17_uracil.npz", c=4, h=4, n=2, o=2),
}


@dataclass
class Frames:
    """What files hold: numbers (n,) int, positions (N, n, 3) Angstrom, energies (N,) eV, forces (N, n, 3) eV/Angstrom, all
    float64; and where they came from."""

    numbers: np.ndarray
    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray
    origin: str

    def take(self, index: np.ndarray | slice) -> Frames:
        """Some of the frames."""
        parts = (self.positions[index], self.energies[index], self.forces[index])
        return Frames(self.numbers, *parts, self.origin)


def read(source: str, molecule: str, part: str, root: str | os.PathLike[str] | None = None) -> Frames:
    """All frames that training and validation ("train") or testing ("test") may take; no frame is in both.

    Raises:
        DataError: unknown names, files that are missing or damaged, other atoms, or values that are not finite.
    """
    if source not in SOURCES:
        raise DataError(f"Unknown source '{source}' of MD17; choose one of {', '.join(SOURCES)}.")
    _known(molecule)
    if source == "md17":
        frames = _read_original(molecule, root)
        order = np.random.default_rng(SHUFFLE_SEED).permutation(len(frames.energies))
        half = len(order) // 2
        return frames.take(order[:half] if part == "train" else order[half:])
    name = FOLDER / f"rmd17_{molecule}_{part}.xyz"
    if (archive := RMD17.locate(root)) is not None and not _anywhere(name, root):
        return _read_revised(archive, molecule, part)
    hint = "Get the official archive (equirelax data get rmd17), or put the frames there as extended XYZ"
    return _read_xyz(find(name, root, hint=hint), molecule)


def get_original(
    molecule: str,
    root: str | os.PathLike[str] | None = None,
    *,
    url: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The original set's file of a molecule, downloaded unless it is there; it is read once before it is put in its place.

    Args:
        url: another address, tried instead of the known ones.
        force: download, also where the file is there.

    Raises:
        DataError: no address gave it; the message says what to do by hand.
    """
    name = _known(molecule).original
    if not force and (found := _anywhere(FOLDER / name, root)) is not None:
        return found
    target = writable_root(root) / FOLDER / name
    fresh = target.with_name(f"{name}.new")
    failures = []
    for address in [url] if url is not None else [pattern.format(name) for pattern in MD17_URLS]:
        try:
            fetch(address, fresh, progress=progress)
            _checked_npz(fresh, molecule, ("z", "R", "E", "F"))
            fresh.replace(target)
            return target
        except DataError as error:
            failures.append(str(error).rstrip("."))
        finally:
            fresh.unlink(missing_ok=True)
    raise DataError(
        f"{name} could not be downloaded. {'. '.join(failures)}. Get it in another way (a browser, a colleague) and put it "
        f"there as {target}."
    )


def _known(molecule: str) -> Molecule:
    if molecule not in MOLECULES:
        raise DataError(
            f"Unknown molecule '{molecule}' of MD17.{did_you_mean(molecule, list(MOLECULES))} Choose one of "
            f"{', '.join(MOLECULES)}."
        )
    return MOLECULES[molecule]


def _anywhere(relative: Path, root: str | os.PathLike[str] | None) -> Path | None:
    return next((f / relative for f in search_roots(root) if (f / relative).is_file()), None)


def _read_original(molecule: str, root: str | os.PathLike[str] | None) -> Frames:
    hint = f"Get it: equirelax data get md17 --molecule {molecule}; or take source 'rmd17'"
    path = find(FOLDER / MOLECULES[molecule].original, root, hint=hint)
    return _checked_npz(path, molecule, ("z", "R", "E", "F"))


def _read_revised(folder: Path, molecule: str, part: str) -> Frames:
    """The first official split's frames."""
    keys = ("nuclear_charges", "coords", "energies", "forces")
    frames = _checked_npz(folder / "npz_data" / MOLECULES[molecule].revised, molecule, keys)
    path = folder / "splits" / f"index_{part}_01.csv"
    check_sum(path)
    try:
        index = np.array([int(line) for line in path.read_text(encoding="utf-8").split()])
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as one index a line ({error}). {_ANEW}.") from error
    if len(index) == 0 or index.min() < 0 or index.max() >= len(frames.energies):
        raise DataError(f"{path} names frames that are not there. {_ANEW}.")
    return frames.take(index)


_ANEW = "Get the file anew"


def _checked_npz(path: Path, molecule: str, keys: tuple[str, str, str, str]) -> Frames:
    """Arrays of an official file: numbers, positions, energies, forces by name; kcal/mol."""
    arrays = load_npz(path, path, f"{_ANEW}.", keys)
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise DataError(f"{path}: the arrays {', '.join(missing)} are missing. {_ANEW}.")
    numbers, positions, energies, forces = (arrays[key] for key in keys)
    for key in keys:
        if arrays[key].dtype.kind not in "iuf":
            raise DataError(f"{path}: {key} must be numbers, and is {arrays[key].dtype}. {_ANEW}.")
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {keys[0]} must be integers (atoms,), and is {numbers.dtype} {numbers.shape}. {_ANEW}."
        )
    frames = Frames(
        numbers.astype(np.int64),
        positions.astype(np.float64),
        energies.astype(np.float64).reshape(-1) * EV_PER_KCAL_MOL,
        forces.astype(np.float64) * EV_PER_KCAL_MOL,
        str(path),
    )
    _check(frames, molecule)
    return frames


def _read_xyz(path: Path, molecule: str) -> Frames:
    """Extended XYZ: the properties pos and forces of every atom, energy in every frame's second line; eV."""
    try:
        from ase.io import iread
    except ImportError as error:
        raise DataError(
            "Extended XYZ files are read with ASE, which is missing: pip install 'equirelax[md17]'."
        ) from error
    check_sum(path)
    numbers: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    energies: list[float] = []
    forces: list[np.ndarray] = []
    try:
        for k, atoms in enumerate(iread(path, index=":", format="extxyz")):
            results = {} if atoms.calc is None else atoms.calc.results
            lacking = [key for key in ("energy", "forces") if key not in results]
            if lacking:
                raise DataError(f"{path}: frame {k} has no {' and no '.join(lacking)}. {_ANEW}.")
            if numbers and not np.array_equal(atoms.numbers, numbers[0]):
                raise DataError(
                    f"{path}: frame {k} has other atoms, or in another order, than the first. {_ANEW}."
                )
            energies.append(float(results["energy"]))  # first, for it may be no number
            numbers.append(atoms.numbers)
            positions.append(atoms.positions)
            forces.append(results["forces"])
    except DataError:
        raise
    # What ASE meets in a damaged file is of many types: ValueError, KeyError, OverflowError, MemoryError, ...
    except Exception as error:
        raise DataError(
            f"{path}: after {len(numbers)} frames it is no extended XYZ, or it ends too early ({error}). {_ANEW}."
        ) from error
    if not numbers:
        raise DataError(f"{path} has no frames. {_ANEW}.")
    frames = Frames(
        np.asarray(numbers[0], dtype=np.int64),
        np.stack(positions),
        np.array(energies, dtype=np.float64),
        np.stack(forces),
        str(path),
    )
    _check(frames, molecule)
    return frames


def _check(frames: Frames, molecule: str) -> None:
    """Raise `DataError` unless the frames are of the molecule, fit together and are finite."""
    for problem in _problems(frames, molecule):
        raise DataError(f"{frames.origin}: {problem}. {_ANEW}.")


def _problems(frames: Frames, molecule: str) -> Iterator[str]:
    kinds, counts = np.unique(frames.numbers, return_counts=True)
    found = dict(zip(kinds.tolist(), counts.tolist(), strict=True))
    expected = dict(sorted(MOLECULES[molecule].formula.items()))
    if found != expected:
        yield f"{molecule} has the atoms {expected} (atomic number: how many); the file has {found}"
    count, atoms = len(frames.energies), len(frames.numbers)
    for name in ("positions", "forces"):
        shape = getattr(frames, name).shape
        if shape != (count, atoms, 3):
            yield f"{name} must have the shape {(count, atoms, 3)}, frames x atoms x 3; they have {shape}"
    for name in ("positions", "energies", "forces"):
        values = getattr(frames, name)
        good = np.isfinite(values.reshape(count, -1)).all(1) if count else np.ones(0, dtype=bool)
        if not good.all():
            yield f"{name} of frame {int(np.argmin(good))} hold NaN or infinity"
