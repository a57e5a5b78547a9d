"""NequIP in the lab: energies and forces are those of its own package, and building it changes nothing outside."""

from __future__ import annotations

import importlib
import random
from typing import Any

import numpy as np
import pytest
import torch
from equirelax_lab.models import ConservativeForces, NequIP
from equirelax_lab.models.nequip import COMPILER_OPTIONS
from molecule_inputs import molecules
from torch import Tensor

from equirelax.errors import RepresentationError

e3nn = pytest.importorskip("e3nn")
pytest.importorskip("nequip", reason="needs nequip: pip install './lab[md17]'")
CUTOFF = 3.0


def network(seed: int = 0, **changes: Any) -> NequIP:
    """In the default dtype."""
    torch.manual_seed(seed)
    sizes = {"layers": 2, "features": 4, "radial_width": 8, "cutoff": CUTOFF}
    return NequIP(**{**sizes, **changes})


def packages(model: NequIP, inputs: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """What the package's network with the same weights gives for its own neighbours and its own forces."""
    from nequip.data import AtomicDataDict, compute_neighborlist_, from_dict
    from nequip.nn import ForceStressOutput

    frames = []
    for molecule in inputs[2].unique():
        own = inputs[2] == molecule
        types = torch.tensor([model.elements.index(int(number)) for number in inputs[0][own]])
        frames.append(compute_neighborlist_(from_dict({"pos": inputs[1][own], "atom_types": types}), CUTOFF))
    forces: Any = ForceStressOutput(model.network.model.func)
    found: dict[str, Tensor] = forces(AtomicDataDict.batched_from_list(frames))
    return found


def test_energies_and_forces_are_those_of_its_package() -> None:
    model, inputs = network(), molecules()
    energies, forces = ConservativeForces(model)(*inputs)
    expected = packages(model, inputs)
    assert float(forces.detach().abs().max()) > 1e-3
    torch.testing.assert_close(energies, expected["total_energy"][:, 0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(forces, expected["forces"], rtol=1e-8, atol=1e-10)


def test_building_one_changes_nothing_for_others() -> None:
    """NequIP sets the default dtype, e3nn's options and all seeds for the whole process."""
    torch.set_default_dtype(torch.float32)
    state: list[Any] = []
    for build in (True, False):
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        if build:
            network_ = NequIP(layers=1, features=2, radial_width=4)
            assert {p.dtype for p in network_.parameters()} == {torch.float32}
        else:
            torch.randint(2**31 - 1, ())  # its own seed
        drawn = (random.random(), float(np.random.rand()), float(torch.rand(())))
        compiler = [
            getattr(importlib.import_module("torch._dynamo.config"), name) for name in COMPILER_OPTIONS
        ]
        state.append((drawn, torch.get_default_dtype(), e3nn.get_optimization_defaults(), compiler))
    assert state[0] == state[1]


def test_its_weights_follow_torchs_seed() -> None:
    first, again, other = (network(seed, layers=1).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_wrong_sizes_and_elements_are_refused() -> None:
    for wrong in ({"layers": 0}, {"cutoff": 0.0}, {"elements": (1, 1)}, {"neighbours": float("nan")}):
        with pytest.raises(RepresentationError, match="NequIP"):
            network(**wrong)
    numbers, positions, batch = molecules()
    model = network(elements=(1, 6, 8))
    for number in (7, 100):
        numbers[0] = number
        with pytest.raises(RepresentationError, match=rf"\[.*{number}.*\].*\[1, 6, 8\]"):
            model(numbers, positions, batch)
