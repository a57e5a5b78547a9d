"""QM9: quantum-chemical properties of small organic molecules (Ramakrishnan et al., Scientific Data 1, 140022, 2014).

Two sources:

- `subset`: 16,771 of its molecules without fluorine, in `qm9/qm9_subset.npz` of the data root. The split is 13,000 / 1,800 /
  1,971. The file is ordered by the molecules' number in QM9, which follows their size and chemistry: in that order
  (`ordered`) validation and test molecules differ in kind from those of training. `shuffled` draws parts of the same sizes from
  all molecules, and `seeded` draws other parts for every seed, as the papers do.
- `pyg`: all of PyTorch Geometric's QM9 (130,831 molecules) in `qm9/pyg` of the data root, downloaded there on first use,
  shuffled or seeded, 80 / 10 / 10 %. Its numbers have single precision: the largest energies are accurate to about 1 meV.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equirelax.errors import DataError
from equirelax_lab.data.archive import load_npz
from equirelax_lab.data.molecules import ELEMENTS, MoleculeSet, Scaling
from equirelax_lab.data.root import find, search_roots, writable_root
from equirelax_lab.extras import install

SUBSET = Path("qm9") / "qm9_subset.npz"
PYG = Path("qm9") / "pyg"
SPLITS = ("train", "val", "test")
PARTITIONS = ("ordered", "shuffled", "seeded")
SUBSET_TRAIN, SUBSET_VAL = 13_000, 1_800
PYG_SHARES = (0.8, 0.1)
PARTITION_SEED = 0
"""Seed of the shuffled partitions, and of the order in which training molecules are taken."""
EV_PER_HARTREE = 27.211386245988
"""CODATA 2018."""
REMEDY = "The file is not the one that is expected; get it again"


@dataclass(frozen=True)
class Target:
    """One of the twelve properties.

    Attributes:
        description: The property in words.
        column: Its name in the subset's file.
        number: Its number in PyTorch Geometric's QM9.
        unit: The unit of what `load` returns. The subset's file has the same unit, or hartree instead of eV.
        extensive: Whether it is approximately a sum over atoms, so that atomic references make sense.
    """

    description: str
    column: str
    number: int
    unit: str
    extensive: bool = False


TARGETS: Mapping[str, Target] = {
    "mu": Target("dipole moment", "mu", 0, "D"),
    "alpha": Target("isotropic polarizability", "alpha", 1, "a0^3", extensive=True),
    "homo": Target("energy of the highest occupied orbital", "homo", 2, "eV"),
    "lumo": Target("energy of the lowest unoccupied orbital", "lumo", 3, "eV"),
    "gap": Target("gap between the two", "gap", 4, "eV"),
    "r2": Target("electronic spatial extent", "r2", 5, "a0^2"),
    "zpve": Target("zero-point vibrational energy", "zpve", 6, "eV", extensive=True),
    "U0": Target("internal energy at 0 K", "u0", 7, "eV", extensive=True),
    "U": Target("internal energy at 298.15 K", "u298", 8, "eV", extensive=True),
    "H": Target("enthalpy at 298.15 K", "h298", 9, "eV", extensive=True),
    "G": Target("free energy at 298.15 K", "g298", 10, "eV", extensive=True),
    "Cv": Target("heat capacity at 298.15 K", "cv", 11, "cal/(mol K)", extensive=True),
}


def load(
    split: str,
    *,
    target: str = "U0",
    targets: str = "standardised",
    source: str = "subset",
    partition: str = "shuffled",
    seed: int = 0,
    train: int | None = None,
    count: int | None = None,
    root: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> MoleculeSet:
    """Load a split with one property.

    Args:
        split: `train`, `val` or `test`.
        target: One of `TARGETS`.
        targets: `standardised` subtracts atomic references (for extensive properties) and the mean, and divides by the
            standard deviation; `mad` subtracts the mean and divides by the mean absolute deviation, both of the training
            molecules; `raw` is the property itself.
        source: `subset` or `pyg`, see above.
        partition: `ordered` (not for `pyg`), `shuffled`, or `seeded`, which shuffles with `seed`.
        seed: Seed of the partition `seeded`.
        train: Number of training molecules in a fixed random order, so that a smaller set is part of a larger one; None: all.
        count: Number of molecules of `val` or `test`, chosen in the same way; None: all.
        root: See `equirelax_lab.data.root`.
        dtype: Dtype of the positions.

    Raises:
        DataError: A name or count is invalid, a file is missing, damaged or of another kind, or the split has an element that no
            training molecule has, so that its reference is unknown.
    """
    for word, known, what in (
        (split, SPLITS, "split"),
        (target, tuple(TARGETS), "target"),
        (targets, ("standardised", "mad", "raw"), "kind of targets"),
        (source, ("subset", "pyg"), "source"),
        (partition, PARTITIONS, "partition"),
    ):
        if word not in known:
            raise DataError(f"Unknown {what} {word!r} of QM9; choose one of {', '.join(known)}.")
    if source == "pyg" and partition == "ordered":
        raise DataError("PyTorch Geometric's QM9 has no ordered partition; take partition 'shuffled'.")
    everything = _read_subset(target, root) if source == "subset" else _read_pyg(target, root)
    parts = split_indices(len(everything), source, partition, seed)
    fitted = everything.subset(_first(parts["train"], train, "train"))
    chosen = fitted if split == "train" else everything.subset(_first(parts[split], count, split))
    scaling = Scaling.identity()
    if targets == "standardised":
        scaling = _scaling(fitted, chosen, target, split)
    elif targets == "mad":
        scaling = Scaling.fit(fitted.targets, fitted.composition(), references=False, absolute=True)
    scaled = scaling.apply(chosen.targets, chosen.composition())
    return MoleculeSet(
        chosen.numbers, chosen.positions.to(dtype), chosen.sizes, scaled, chosen.identifiers, scaling
    )


def split_indices(molecules: int, source: str, partition: str, seed: int = 0) -> dict[str, Tensor]:
    """List the indices of every split into the source's molecules. `seed` is the seed of the partition `seeded`.

    Raises:
        DataError: There are too few molecules for the subset's sizes.
    """
    if source == "subset":
        first, second = SUBSET_TRAIN, SUBSET_VAL
        if molecules <= first + second:
            raise DataError(
                f"The QM9 subset has {molecules} molecules; more than {first + second} are expected."
            )
    else:
        first, second = (round(share * molecules) for share in PYG_SHARES)
    order = np.arange(molecules)
    if partition == "shuffled":
        order = np.random.default_rng(PARTITION_SEED).permutation(molecules)
    elif partition == "seeded":
        order = np.random.default_rng([PARTITION_SEED, seed]).permutation(molecules)
    bounds = np.split(order, [first, first + second])
    # sorted, because the order of a random draw means nothing
    return {name: torch.from_numpy(np.sort(part)) for name, part in zip(SPLITS, bounds, strict=True)}


def _first(indices: Tensor, count: int | None, split: str) -> Tensor:
    """The first `count` indices in a fixed random order, sorted. The file's first molecules would be the smallest."""
    if count is None:
        return indices
    if not 1 <= count <= len(indices):
        raise DataError(f"The {split} split of QM9 has {len(indices)} molecules; {count} were requested.")
    order = np.random.default_rng(PARTITION_SEED + 1).permutation(len(indices))
    return indices[torch.from_numpy(np.sort(order[:count]))]


def _scaling(fitted: MoleculeSet, chosen: MoleculeSet, target: str, split: str) -> Scaling:
    """Fit the scaling to the training molecules, if they have all elements of the chosen ones."""
    composition, extensive = fitted.composition(), TARGETS[target].extensive
    unknown = (chosen.composition().sum(0) > 0) & (composition.sum(0) == 0)
    if extensive and bool(unknown.any()):
        elements = ", ".join(str(int(number)) for number in unknown.nonzero()[:, 0])
        raise DataError(
            f"The {split} split has the elements {elements} (atomic numbers), which no one of the {len(fitted)} training "
            f"molecules has: their references are not known. Train on more molecules, or on raw targets."
        )
    return Scaling.fit(fitted.targets, composition, extensive)


def _read_subset(target: str, root: str | Path | None) -> MoleculeSet:
    """Read all molecules of the subset's file, with a raw target."""
    hint = f"`equirelax list` says how to get it. Put it there as {SUBSET}, or take source 'pyg'"
    path = find(SUBSET, root, hint=hint)
    arrays = load_npz(path, path, "Get the file again.")
    _check_subset(arrays, path)
    chosen = TARGETS[target]
    names = arrays["target_names"].tolist()
    if chosen.column not in names:
        raise DataError(f"{path}: there is no target {chosen.column!r}. {REMEDY}.")
    values = torch.from_numpy(arrays["targets"][:, names.index(chosen.column)].astype(np.float64))
    return MoleculeSet(
        numbers=torch.from_numpy(arrays["Z"].astype(np.int64)),
        positions=torch.from_numpy(arrays["R"].astype(np.float64)),
        sizes=torch.from_numpy(arrays["n_atoms"].astype(np.int64)),
        targets=values * EV_PER_HARTREE if chosen.unit == "eV" else values,
        identifiers=torch.from_numpy(arrays["gdb_id"].astype(np.int64)),
    )


def _check_subset(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Raise `DataError` unless all arrays exist, are finite and fit together."""

    def require(condition: object, problem: str) -> None:
        if not condition:
            raise DataError(f"{path}: {problem}. {REMEDY}.")

    keys = ("gdb_id", "n_atoms", "Z", "R", "targets", "target_names")
    missing = [key for key in keys if key not in arrays]
    require(not missing, f"the arrays {', '.join(missing)} are missing")
    ids, sizes, numbers, positions, values, names = (arrays[key] for key in keys)
    require(sizes.ndim == 1 and sizes.dtype.kind in "iu" and len(sizes), "n_atoms must be integers (N,)")
    atoms = int(sizes.astype(np.int64).sum())
    require(sizes.min() > 0 and numbers.shape == (atoms,), f"Z must have the {atoms} atoms that n_atoms says")
    require(
        numbers.dtype.kind in "iu" and numbers.min() > 0 and numbers.max() < ELEMENTS,
        f"Z must be atomic numbers from 1 to {ELEMENTS - 1}",
    )
    require(
        positions.shape == (atoms, 3) and positions.dtype.kind == "f",
        f"R must be floats of shape ({atoms}, 3)",
    )
    require(
        values.shape == (len(sizes), len(names)) and values.dtype.kind == "f", "targets must be (N, names)"
    )
    require(ids.shape == sizes.shape and ids.dtype.kind in "iu", "gdb_id must be integers (N,)")
    require(np.isfinite(positions).all() and np.isfinite(values).all(), "R or targets hold NaN or infinity")


@contextlib.contextmanager
def _nothing_unpickled() -> Iterator[None]:
    """Let torch.load run no code from any file in the body, although PyTorch Geometric reads some with `weights_only=False`."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _read_pyg(target: str, root: str | Path | None) -> MoleculeSet:
    """Read all molecules of PyTorch Geometric's QM9, with a raw target; download them if they are missing."""
    try:
        from torch_geometric.datasets import QM9
    except ImportError as error:
        raise DataError(f"QM9 from PyTorch Geometric needs it: {install('pyg')}") from error
    homes = (folder / PYG for folder in search_roots(root))
    home = next((folder for folder in homes if (folder / "raw").is_dir()), writable_root(root) / PYG)
    try:
        with _nothing_unpickled():
            dataset = QM9(str(home))
    # Damaged files raise errors of many types in PyTorch Geometric: OSError, RuntimeError, UnpicklingError, KeyError, ...
    except Exception as error:
        raise DataError(
            f"PyTorch Geometric's QM9 could not be read from or downloaded to {home} ({error}). Without a connection, put "
            f"the unpacked qm9_v3.pt of data.pyg.org/datasets/qm9_v3.zip there as raw/qm9_v3.pt, or remove the folder if "
            f"it is damaged, or take source 'subset'."
        ) from error
    # the whole set at once; item by item it takes a quarter of a minute
    whole, sizes = dataset._data, dataset.slices["z"].diff()
    if not bool(torch.isfinite(whole.pos).all()) or not bool(torch.isfinite(whole.y).all()):
        raise DataError(f"{home} holds NaN or infinity; remove the folder and get it again.")
    return MoleculeSet(
        numbers=whole.z.long(),
        positions=whole.pos.double(),
        sizes=sizes.long(),
        targets=whole.y[:, TARGETS[target].number].double(),
        identifiers=whole.idx.long() + 1,
    )
