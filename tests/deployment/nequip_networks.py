"""A small NequIP, frames of ethanol, and comparisons of ASE calculators, for tests of how it is deployed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import equirelax as er
from equirelax.auditing import AuditReport
from equirelax.symmetry import E, positions, vector

ROOT = Path(__file__).parents[2]
EXAMPLES, SAMPLES = ROOT / "examples", ROOT / "lab" / "tests" / "samples"
SYMBOLS = ["H", "C", "O"]


def frames(count: int = 2) -> list[Any]:
    """The first test frames of ethanol (`ase.Atoms`), whose forces are kept as the array "F"."""
    import ase.io

    found = []
    for frame in ase.io.read(SAMPLES / "md17" / "rmd17_ethanol_test.xyz", f":{count}"):
        found.append(frame.copy())  # without the calculator that holds energy and forces
        found[-1].arrays["F"] = frame.get_forces()
    return found


def begin() -> None:
    """What every program of NequIP begins with. A second call does not set the default dtype, which another test may have set."""
    from nequip.utils.global_state import set_global_state

    set_global_state()
    torch.set_default_dtype(torch.float64)


def network(num_layers: int = 2) -> nn.Module:
    """Two layers of four channels, float64; NequIP draws its weights from a seed of its own."""
    from nequip.model import NequIPGNNModel

    begin()
    model: nn.Module = NequIPGNNModel(
        seed=0, model_dtype="float64", r_max=4.0, type_names=SYMBOLS, num_layers=num_layers, l_max=1, num_features=4,
        radial_mlp_width=8, avg_num_neighbors=8.0, per_type_energy_scales=1.0, per_type_energy_shifts=0.0,
    )  # fmt: skip
    return model


def audited(model: nn.Module, data: dict[str, Tensor], deployed: str | None = None) -> AuditReport:
    """A short audit, without a search for the layer that breaks."""
    few: dict[str, Any] = {"samples": 2, "lie": False, "per_layer": False, "deployed": deployed}
    reps = {"pos": positions(E(3))}, {"forces": vector(E(3))}
    return er.audit(model, data, *reps, outputs=["total_energy", "forces"], **few)


def results(calculator: Any, frame: Any) -> tuple[float, np.ndarray]:
    """Energy and forces of a frame."""
    atoms = frame.copy()
    atoms.calc = copy.copy(calculator)
    return float(atoms.get_potential_energy()), np.asarray(atoms.get_forces())


def differ(one: Any, other: Any, count: int = 2) -> float:
    """Largest difference of energies and forces of two calculators, relative to the largest force."""
    worst = 0.0
    for frame in frames(count):
        (e, f), (e2, f2) = results(one, frame), results(other, frame)
        worst = max(worst, abs(e - e2) / max(abs(e), 1.0), float(np.abs(f - f2).max() / np.abs(f).max()))
    return worst
