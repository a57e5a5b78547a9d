"""Made-up frames of ethanol in the layouts of MD17's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

ETHANOL = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1])
SYMBOLS = {1: "H", 6: "C", 8: "O"}
Arrays = dict[str, np.ndarray]


def frames(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (count, 9, 3) near a grid, energies (count,) near those of ethanol in eV, forces (count, 9, 3)."""
    rng = np.random.default_rng(seed)
    grid = 1.4 * np.stack(np.meshgrid(*3 * [np.arange(3.0)], indexing="ij"), -1).reshape(-1, 3)[::3]
    positions = grid + 0.1 * rng.normal(size=(count, 9, 3))
    return positions, -4209.0 + 0.2 * rng.normal(size=count), rng.normal(size=(count, 9, 3))


def xyz_text(count: int, seed: int = 0) -> str:
    """Extended XYZ, eV."""
    lines = []
    for where, energy, forces in zip(*frames(count, seed), strict=True):
        lines += ["9", f'Properties=species:S:1:pos:R:3:forces:R:3 energy={float(energy)!r} pbc="F F F"']
        for number, x, f in zip(ETHANOL, where, forces, strict=True):
            lines.append(" ".join([SYMBOLS[int(number)], *(repr(float(v)) for v in (*x, *f))]))
    return "\n".join(lines) + "\n"


def write_xyz(root: Path, train: int = 1010, test: int = 40) -> Path:
    """Both files of rMD17's ethanol below the data root `root`; returns the root."""
    (root / "md17").mkdir(parents=True, exist_ok=True)
    (root / "md17" / "rmd17_ethanol_train.xyz").write_text(xyz_text(train))
    (root / "md17" / "rmd17_ethanol_test.xyz").write_text(xyz_text(test, seed=1))
    return root


def original(count: int = 2100) -> Arrays:
    """The original set's arrays, kcal/mol."""
    positions, energies, forces = frames(count)
    return {"z": ETHANOL.astype(np.uint8), "R": positions, "E": energies[:, None], "F": forces}


def revised(count: int = 2100) -> Arrays:
    """The revised set's arrays, kcal/mol."""
    positions, energies, forces = frames(count)
    return {"nuclear_charges": ETHANOL, "coords": positions, "energies": energies, "forces": forces}


def write_revised(folder: Path, train: list[int], test: list[int], count: int = 2100) -> Path:
    """The official archive's folder, its first split; returns it."""
    (folder / "npz_data").mkdir(parents=True)
    (folder / "splits").mkdir()
    np.savez(folder / "npz_data" / "rmd17_ethanol.npz", **revised(count))
    for part, index in (("train", train), ("test", test)):
        (folder / "splits" / f"index_{part}_01.csv").write_text("\n".join(map(str, index)) + "\n")
    return folder
