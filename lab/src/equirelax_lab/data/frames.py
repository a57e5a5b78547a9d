"""Frames of one molecule, with energies and forces, and batches of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from equirelax.errors import DataError
from equirelax_lab.data.molecules import ELEMENTS, Scaling, turn


@dataclass
class MolecularFrames:
    """N frames of one molecule of n atoms.

    Attributes:
        numbers: (n,) long, atomic numbers 1 .. 99.
        positions: (N, n, 3), Angstrom.
        energies: (N,) float64, eV.
        forces: (N, n, 3), eV/Angstrom: minus the gradient of the energy.
        scaling: between eV and what a network learns. Its one deviation divides energies and forces alike, so that scaled
            forces stay the gradient of scaled energies. See `force_scaling`.
    """

    numbers: Tensor
    positions: Tensor
    energies: Tensor
    forces: Tensor
    scaling: Scaling = dataclasses.field(default_factory=Scaling.identity)

    def __len__(self) -> int:
        return self.positions.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.positions.device

    @property
    def atoms(self) -> int:
        """Number of atoms n."""
        return self.numbers.shape[0]

    def batch(self, indices: Tensor | Sequence[int], rotation: Tensor | None = None) -> dict[str, Tensor]:
        """The frames `indices` (b of them) as one graph of b n atoms.

        Args:
            indices: (b,) long tensor or a sequence of integers, 0 .. N-1.
            rotation: (3, 3), or (b, 3, 3) for one per frame; turns positions about the origin, and forces with them.

        Returns:
            numbers (b n,), positions (b n, 3) Angstrom, graph (b n,) long: the number 0 .. b-1 of each atom's frame; and
            scaled energies (b,) float64, scaled forces (b n, 3); deviation () float64: eV of one scaled unit.
        """
        index = torch.as_tensor(indices, dtype=torch.long, device=self.device)
        graph = torch.arange(index.shape[0], device=self.device).repeat_interleave(self.atoms)
        positions = self.positions.index_select(0, index).flatten(0, 1)
        forces = self.forces.index_select(0, index).flatten(0, 1)
        if rotation is not None:
            positions, forces = turn(positions, rotation, graph), turn(forces, rotation, graph)
        return {
            "numbers": self.numbers.repeat(index.shape[0]),
            "positions": positions,
            "graph": graph,
            "energies": (self.energies.index_select(0, index) - self._offset) / self.scaling.deviation,
            "forces": forces / self.scaling.deviation,
            "deviation": self._deviation,
        }

    def composition(self) -> Tensor:
        """(ELEMENTS,) float64 numbers of atoms of every element."""
        return self.numbers.bincount(minlength=ELEMENTS).double()

    def subset(self, indices: Tensor | Sequence[int] | slice) -> Self:
        """The frames `indices` alone, in that order."""
        return dataclasses.replace(
            self,
            positions=self.positions[indices],
            energies=self.energies[indices],
            forces=self.forces[indices],
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The set on `device`, positions and forces as `dtype`; energies stay float64, which their size needs."""
        return dataclasses.replace(
            self,
            numbers=self.numbers.to(device),
            positions=self.positions.to(device=device, dtype=dtype),
            energies=self.energies.to(device),
            forces=self.forces.to(device=device, dtype=dtype),
        )

    def __post_init__(self) -> None:
        count, atoms = self.energies.shape[0], self.numbers.shape[0]
        for name, shape in (("positions", (count, atoms, 3)), ("forces", (count, atoms, 3))):
            if tuple(getattr(self, name).shape) != shape:
                raise DataError(
                    f"{name} must have the shape {shape}; got {tuple(getattr(self, name).shape)}."
                )
        if self.energies.dtype != torch.float64:
            raise DataError(f"energies must be float64, which their size needs; got {self.energies.dtype}.")
        if atoms == 0 or not 0 < int(self.numbers.min()) <= int(self.numbers.max()) < ELEMENTS:
            raise DataError(f"There must be atoms, with atomic numbers from 1 to {ELEMENTS - 1}.")
        references = self.scaling.references.to(self.device)
        self._offset = self.composition() @ references + self.scaling.mean
        self._deviation = torch.tensor(self.scaling.deviation, dtype=torch.float64, device=self.device)


def force_scaling(frames: MolecularFrames) -> Scaling:
    """Atomic references by least squares of the smallest norm, which make the mean scaled energy 0; the deviation is the root
    mean square of the forces' components, in eV/Angstrom, taken as eV too: a scaled network's length unit stays the Angstrom.

    Args:
        frames: of training, and no others.

    Raises:
        DataError: no frames.
    """
    fitted = Scaling.fit(frames.energies, frames.composition().expand(len(frames), -1), references=True)
    size = float(frames.forces.double().square().mean().sqrt())
    return dataclasses.replace(fitted, deviation=size if size > 0 else 1.0)
