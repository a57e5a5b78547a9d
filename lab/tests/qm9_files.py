"""Made-up molecules in the layout of the QM9 subset's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

COLUMNS = ("A", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u298", "h298", "g298", "cv")
Arrays = dict[str, np.ndarray]


def subset_arrays(count: int = 24) -> Arrays:
    """`count` molecules of 2 to 6 atoms; u0 is a sum over atoms and a little of its own."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 7, count)
    numbers = rng.choice([1, 6, 7, 8], sizes.sum())
    owner = np.repeat(np.arange(count), sizes)
    values = rng.normal(size=(count, len(COLUMNS)))
    values[:, COLUMNS.index("u0")] += 10 * np.bincount(owner, weights=-numbers.astype(float))
    return {
        "gdb_id": np.arange(count, dtype=np.int32) * 3 + 1,
        "n_atoms": sizes.astype(np.int16),
        "Z": numbers.astype(np.uint8),
        # on a grid, stirred: no two atoms of a molecule in one place
        "R": (rng.normal(size=(sizes.sum(), 3)) * 0.2 + 1.2 * np.arange(sizes.sum())[:, None] % 5).astype(
            np.float32
        ),
        "targets": values,
        "target_names": np.array(COLUMNS),
    }


def write_subset(root: Path, arrays: Arrays | None = None) -> Path:
    """Write the file below the data root `root`; returns the root."""
    (root / "qm9").mkdir(exist_ok=True)
    np.savez(root / "qm9" / "qm9_subset.npz", **(subset_arrays() if arrays is None else arrays))
    return root
