"""QM9: quantum-chemical properties of small organic molecules (Ramakrishnan et al., Scientific Data 1, 140022, 2014).

Two sources, both written by `equirelax data get qm9` from the published archive:

- `subset`: 16,771 of its molecules without fluorine, in `qm9/qm9_subset.npz` of the data root. The split is 13,000 / 1,800 /
  1,971. The file is ordered by the molecules' number in QM9, which follows their size and chemistry: in that order
  (`ordered`) validation and test molecules differ in kind from those of training. `shuffled` draws parts of the same sizes from
  all molecules, and `seeded` draws other parts for every seed, as the papers do.
- `full`: all 130,831 molecules that are consistent with their formula, in `qm9/qm9.npz`, shuffled or seeded, 80 / 10 / 10 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equirelax.errors import DataError
from equirelax_lab.data.archive import load_npz
from equirelax_lab.data.molecules import ELEMENTS, MoleculeSet, Scaling
from equirelax_lab.data.root import command, find

SUBSET = Path("qm9") / "qm9_subset.npz"
FULL = Path("qm9") / "qm9.npz"
SOURCES: Mapping[str, Path] = {"subset": SUBSET, "full": FULL}
SPLITS = ("train", "val", "test")
PARTITIONS = ("ordered", "shuffled", "seeded")
SUBSET_TRAIN, SUBSET_VAL = 13_000, 1_800
FULL_SHARES = (0.8, 0.1)
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
        column: Its name in the file.
        unit: The unit of what `load` returns. The file has the same unit, or hartree instead of eV.
        extensive: Whether it is approximately a sum over atoms, so that atomic references make sense.
    """

    description: str
    column: str
    unit: str
    extensive: bool = False


TARGETS: Mapping[str, Target] = {
    "mu": Target("dipole moment", "mu", "D"),
    "alpha": Target("isotropic polarizability", "alpha", "a0^3", extensive=True),
    "homo": Target("energy of the highest occupied orbital", "homo", "eV"),
    "lumo": Target("energy of the lowest unoccupied orbital", "lumo", "eV"),
    "gap": Target("gap between the two", "gap", "eV"),
    "r2": Target("electronic spatial extent", "r2", "a0^2"),
    "zpve": Target("zero-point vibrational energy", "zpve", "eV", extensive=True),
    "U0": Target("internal energy at 0 K", "u0", "eV", extensive=True),
    "U": Target("internal energy at 298.15 K", "u298", "eV", extensive=True),
    "H": Target("enthalpy at 298.15 K", "h298", "eV", extensive=True),
    "G": Target("free energy at 298.15 K", "g298", "eV", extensive=True),
    "Cv": Target("heat capacity at 298.15 K", "cv", "cal/(mol K)", extensive=True),
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
        source: `subset` or `full`, see above.
        partition: `ordered` (not for `full`), `shuffled`, or `seeded`, which shuffles with `seed`.
        seed: Seed of the partition `seeded`.
        train: Number of training molecules in a fixed random order, so that a smaller set is a subset of a larger one; None: all.
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
        (source, tuple(SOURCES), "source"),
        (partition, PARTITIONS, "partition"),
    ):
        if word not in known:
            raise DataError(f"Unknown {what} {word!r} of QM9; choose one of {', '.join(known)}.")
    if source == "full" and partition == "ordered":
        raise DataError(
            "Source 'full' of QM9 has no ordered partition; take partition 'shuffled' or 'seeded'."
        )
    everything = _read(SOURCES[source], target, root)
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
        first, second = (round(share * molecules) for share in FULL_SHARES)
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


def _read(file: Path, target: str, root: str | Path | None) -> MoleculeSet:
    """Read all molecules of a file, with a raw target."""
    path = find(
        file, root, hint=f"Get it: {command('equirelax data get qm9', root)}; or put it there as {file}"
    )
    arrays = load_npz(path, path, "Get the file again.")
    _check(arrays, path)
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


def _check(arrays: Mapping[str, np.ndarray], path: Path) -> None:
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
