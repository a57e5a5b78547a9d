"""MD17 and rMD17: frames of the dynamics of small molecules, with energies and forces from density functional theory.

There are two sources whose numbers must not be compared: `rmd17`, the revised set, recomputed with tight settings (Christensen
and von Lilienfeld, Machine Learning: Science and Technology 1, 045018, 2020), and `md17`, the original set (Chmiela et al.,
Science Advances 3, e1603015, 2017), which most published numbers use and whose energies are noisy. The protocol takes 950
frames for training, 50 for validation and 1000 for testing.

These files are read, in the folder md17 of the data root, and converted to Angstrom, eV and eV/Angstrom:

- `rmd17_MOLECULE_train.xyz`, `rmd17_MOLECULE_test.xyz`: frames of the revised set as extended XYZ in eV, read with ASE.
- `rmd17/`: the official archive of the revised set in kcal/mol: `npz_data/*.npz` with 100,000 frames a molecule (azobenzene
  99,988), and `splits/index_train_01.csv` and `index_test_01.csv`, the first of its five splits.
- `md17_MOLECULE.npz`: a trajectory of the original set in kcal/mol, which `equirelax data get md17` downloads. Its frames are
  shuffled with a fixed seed before they are split.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equirelax.errors import DataError
from equirelax.files import did_you_mean
from equirelax_lab.data.archive import check_sum, load_npz
from equirelax_lab.data.download import RMD17, fetch
from equirelax_lab.data.molecules import MolecularFrames, Scaling, force_scaling
from equirelax_lab.data.root import command, find, search_roots, writable_root
from equirelax_lab.extras import install

FOLDER = Path("md17")
SOURCES = ("rmd17", "md17")
EV_PER_KCAL_MOL = 4184 / 96485.33212331
"""A thermochemical kilocalorie per mole; CODATA 2018."""
SHUFFLE_SEED = 0
"""Seed of the order of the original trajectories."""
MD17_URLS = ("http://www.quantum-machine.org/gdml/data/npz/{}", "http://quantum-machine.org/gdml/data/npz/{}")


@dataclass(frozen=True)
class Molecule:
    """A molecule's formula {atomic number: atoms}, and the names of its files in the two official sets."""

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
    """The content of files, in float64.

    Attributes:
        numbers: (n,) int, atomic numbers.
        positions: (N, n, 3), Angstrom.
        energies: (N,), eV.
        forces: (N, n, 3), eV/Angstrom.
        origin: Where the frames came from.
    """

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
    """Read all frames for training and validation ("train") or for testing ("test"). No frame is in both.

    Raises:
        DataError: A name is unknown, files are missing or damaged, or they hold other atoms or NaN.
    """
    if source not in SOURCES:
        raise DataError(f"Unknown source '{source}' of MD17; choose one of {', '.join(SOURCES)}.")
    _known(molecule)
    if source == "md17":
        frames = _read_original(molecule, root)
        order = np.random.default_rng(SHUFFLE_SEED).permutation(len(frames.energies))
        half = len(order) // 2
        return frames.take(order[:half] if part == "train" else order[half:])
    name = _prepared(molecule, part)
    if (archive := RMD17.locate(root)) is not None and not _anywhere(name, root):
        return _read_revised(archive, molecule, part)
    hint = f"Get the official archive ({command('equirelax data get rmd17', root)}), or put the frames there as extended XYZ"
    return _read_xyz(find(name, root, hint=hint), molecule)


def get_original(
    molecule: str, root: str | os.PathLike[str] | None = None, *, url: str | None = None, force: bool = False
) -> Path:
    """Return the original set's file of a molecule. It is downloaded if it is missing, and checked before it is kept.

    Args:
        url: Another address, instead of the known ones.
        force: Download even if the file is there.

    Raises:
        DataError: No address gave the file. The message says what to do by hand.
    """
    name = _known(molecule).original
    if not force and (found := _anywhere(FOLDER / name, root)) is not None:
        return found
    target = writable_root(root) / FOLDER / name
    fresh = target.with_name(f"{name}.new")
    failures = []
    for address in [url] if url is not None else [pattern.format(name) for pattern in MD17_URLS]:
        try:
            fetch(address, fresh)
            _checked_npz(fresh, molecule, ("z", "R", "E", "F"))
            fresh.replace(target)
            return target
        except DataError as error:
            failures.append(str(error).rstrip("."))
        finally:
            fresh.unlink(missing_ok=True)
    raise DataError(
        f"{name} could not be downloaded. {'. '.join(failures)}. Get it in another way (with a browser, from a colleague) and "
        f"save it as {target}."
    )


def _prepared(molecule: str, part: str) -> Path:
    """The path below the data root of the revised set's frames for one part as extended XYZ."""
    return FOLDER / f"rmd17_{molecule}_{part}.xyz"


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
    get = command(f"equirelax data get md17 --molecule {molecule}", root)
    hint = f"Get it: {get}; or take source 'rmd17'"
    path = find(FOLDER / MOLECULES[molecule].original, root, hint=hint)
    return _checked_npz(path, molecule, ("z", "R", "E", "F"))


def _read_archived(folder: Path, molecule: str) -> Frames:
    """Read all frames of the official archive."""
    keys = ("nuclear_charges", "coords", "energies", "forces")
    return _checked_npz(folder / "npz_data" / MOLECULES[molecule].revised, molecule, keys)


def _read_revised(folder: Path, molecule: str, part: str) -> Frames:
    """Read the frames of the first official split."""
    frames = _read_archived(folder, molecule)
    path = folder / "splits" / f"index_{part}_01.csv"
    check_sum(path)
    try:
        index = np.array([int(line) for line in path.read_text(encoding="utf-8").split()])
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as one index a line ({error}). {_ANEW}.") from error
    if len(index) == 0 or index.min() < 0 or index.max() >= len(frames.energies):
        raise DataError(f"{path} names frames that are not there. {_ANEW}.")
    return frames.take(index)


_ANEW = "Get the file again"


def _checked_npz(path: Path, molecule: str, keys: tuple[str, str, str, str]) -> Frames:
    """Read an official file in kcal/mol; `keys` name its numbers, positions, energies and forces."""
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
    """Read extended XYZ in eV: the properties pos and forces of every atom, and the energy in every frame's second line."""
    try:
        from ase.io import iread
    except ImportError as error:
        raise DataError(
            f"Extended XYZ files are read with ASE, which is missing: {install('md17')}"
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
            energies.append(float(results["energy"]))  # first, because it may not be a number
            numbers.append(atoms.numbers)
            positions.append(atoms.positions)
            forces.append(results["forces"])
    except DataError:
        raise
    # A damaged file raises errors of many types in ASE: ValueError, KeyError, OverflowError, MemoryError, ...
    except Exception as error:
        raise DataError(
            f"{path}: after {len(numbers)} frames it is not extended XYZ, or it ends too early ({error}). {_ANEW}."
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
    """Raise `DataError` unless the frames belong to the molecule, fit together and are finite."""
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


SPLITS = ("train", "val", "test")
COUNTS = (950, 50, 1000)
DRAW_SEED = 17
"""Seed of the random splits, together with the seed of a run."""
ARRAYS = ("positions", "energies", "forces")


def load(
    split: str,
    molecule: str = "aspirin",
    source: str = "rmd17",
    root: str | os.PathLike[str] | None = None,
    counts: tuple[int, int, int | None] = COUNTS,
    dtype: torch.dtype = torch.float32,
    *,
    frames: str = "first",
    seed: int = 0,
    scale: str = "forces",
) -> MolecularFrames:
    """Load a split, scaled by the training frames.

    Args:
        split: `train`, `val` or `test`.
        molecule: One of `MOLECULES`.
        source: `rmd17` or `md17`.
        root: See `equirelax_lab.data.root`.
        counts: Numbers of training, validation and test frames. Training takes the source's first training frames; validation
            takes those from number 950 on (or after the training frames), so that fewer training frames do not change
            them; testing takes the first test frames, or all (None).
        dtype: Dtype of positions and forces.
        frames: `first`, see `counts`; or `random`, which draws training, validation and test frames, in this order, from all
            frames of the source with `seed`.
        scale: `forces` scales by the root mean square of the training forces (`force_scaling`), `energies` by the standard
            deviation of the training energies.

    Raises:
        DataError: A name is unknown, a count is below 1 or too large, or files are missing or damaged.
    """
    if split not in SPLITS:
        raise DataError(f"Unknown split '{split}' of MD17; choose one of {', '.join(SPLITS)}.")
    if len(counts) != 3 or min(1 if count is None else count for count in counts) < 1:
        raise DataError(
            f"counts must be three numbers of frames, train, val and test, at least 1; got {counts}."
        )
    for word, known in ((frames, ("first", "random")), (scale, ("forces", "energies"))):
        if word not in known:
            raise DataError(f"Unknown choice '{word}' of MD17; choose one of {', '.join(known)}.")
    if frames == "random":
        parts = _drawn(_everything(source, molecule, root), counts, seed)
    else:
        parts = _first(source, molecule, root, counts, split)
    training = _tensors(parts["train"], dtype)
    found = training if split == "train" else _tensors(parts[split], dtype)
    return dataclasses.replace(found, scaling=_scaling(training, scale))


def _scaling(training: MolecularFrames, scale: str) -> Scaling:
    if scale == "forces":
        return force_scaling(training)
    composition = training.composition().expand(len(training), -1)
    return Scaling.fit(training.energies, composition, references=True)


def _first(
    source: str,
    molecule: str,
    root: str | os.PathLike[str] | None,
    counts: tuple[int, int, int | None],
    split: str,
) -> dict[str, Frames]:
    """Take the training frames and, if it is another one, the split."""
    train, val, test = counts
    fitted = read(source, molecule, "train", root)
    parts = {"train": _part(fitted, 0, train, "train")}
    if split == "val":
        parts[split] = _part(fitted, max(train, COUNTS[0]), val, split)
    elif split == "test":
        others = read(source, molecule, "test", root)
        _check_order(fitted, others, molecule)
        parts[split] = _part(others, 0, len(others.energies) if test is None else test, split)
    return parts


def _everything(source: str, molecule: str, root: str | os.PathLike[str] | None) -> Frames:
    """Read all frames of a source, including those that the splits of the official archive leave out."""
    if source == "rmd17":
        _known(molecule)
        prepared = (_prepared(molecule, part) for part in ("train", "test"))
        if (archive := RMD17.locate(root)) is not None and not any(
            _anywhere(name, root) for name in prepared
        ):
            return _read_archived(archive, molecule)
    one, other = (read(source, molecule, part, root) for part in ("train", "test"))
    _check_order(one, other, molecule)
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in ARRAYS
    }
    return dataclasses.replace(one, **joined)


def _drawn(everything: Frames, counts: tuple[int, int, int | None], seed: int) -> dict[str, Frames]:
    """Draw the three splits in a random order."""
    train, val, test = counts
    there = len(everything.energies)
    wanted = train + val + (1 if test is None else test)
    if wanted > there:
        raise DataError(
            f"{everything.origin} has {there} frames; {wanted} or more were requested: ask for fewer."
        )
    order = np.random.default_rng([DRAW_SEED, seed]).permutation(there)
    last = there if test is None else wanted
    bounds = {"train": (0, train), "val": (train, train + val), "test": (train + val, last)}
    return {split: everything.take(order[slice(*ends)]) for split, ends in bounds.items()}


def _check_order(one: Frames, other: Frames, molecule: str) -> None:
    if not np.array_equal(one.numbers, other.numbers):
        raise DataError(
            f"The test frames of {molecule} have their atoms in another order than those of training. Get the files again."
        )


def _part(frames: Frames, start: int, count: int, split: str) -> Frames:
    there = len(frames.energies)
    if start + count > there:
        before = f" after the first {start}" if start else ""
        raise DataError(
            f"The {split} split takes {count} frames{before}, and {frames.origin} has {there} for it: ask for fewer."
        )
    return frames.take(slice(start, start + count))


def _tensors(frames: Frames, dtype: torch.dtype) -> MolecularFrames:
    return MolecularFrames(
        torch.from_numpy(frames.numbers),
        torch.from_numpy(frames.positions).to(dtype),
        torch.from_numpy(frames.energies),
        torch.from_numpy(frames.forces).to(dtype),
    )
