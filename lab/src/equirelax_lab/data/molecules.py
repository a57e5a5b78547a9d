"""Molecules as whole tensors, and batches of them: sets of molecules of different sizes, and frames of one molecule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from equirelax.errors import DataError

ELEMENTS = 100
"""Atomic numbers are below this value."""
CHUNK = 2048
"""Number of molecules whose edges are computed at once."""


@dataclass(frozen=True)
class Scaling:
    """The map from a property to a network's target: (property - sum of atomic references - mean) / deviation.

    Attributes:
        references: (ELEMENTS,) float64 contribution of an atom by atomic number, in the property's unit; 0 for no reference.
        mean: The mean, in the property's unit.
        deviation: The deviation, in the property's unit, above 0.
    """

    references: Tensor
    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def identity(cls) -> Scaling:
        """The identity."""
        return cls(torch.zeros(ELEMENTS, dtype=torch.float64))

    @classmethod
    def fit(cls, values: Tensor, composition: Tensor, references: bool, absolute: bool = False) -> Scaling:
        """Fit a scaling to training molecules.

        Args:
            values: (N,) the property.
            composition: (N, ELEMENTS) numbers of atoms by element.
            references: Whether to subtract atomic references: the least-squares solution of smallest norm. Elements that do not
                occur have none.
            absolute: Whether the deviation is the mean absolute deviation instead of the root mean square.

        Raises:
            DataError: There are no molecules.
        """
        if len(values) == 0:
            raise DataError("A scaling cannot be fitted to no molecules; take at least one.")
        values, composition = values.double(), composition.double()
        atoms = values.new_zeros(ELEMENTS)
        present = composition.sum(0) > 0
        if references:
            # gelsd, because the matrix may lack full rank
            solution = torch.linalg.lstsq(composition[:, present], values[:, None], driver="gelsd").solution
            atoms[present] = solution[:, 0]
        rest = values - composition @ atoms
        # if only rounding is left, dividing by it would amplify it
        noise = 1e-12 * float(values.abs().max())
        away = rest - rest.mean()
        deviation = float(away.abs().mean() if absolute else away.square().mean().sqrt())
        return cls(atoms, float(rest.mean()), deviation if deviation > noise else 1.0)

    def apply(self, values: Tensor, composition: Tensor) -> Tensor:
        """Scale a property (N,) of molecules with a composition (N, ELEMENTS): (N,) float64."""
        return (values.double() - composition.double() @ self.references - self.mean) / self.deviation

    def invert(self, scaled: Tensor, composition: Tensor) -> Tensor:
        """Convert scaled values back to the property's unit: (N,) float64."""
        return scaled.double() * self.deviation + self.mean + composition.double() @ self.references


@dataclass
class MoleculeSet:
    """N molecules with A atoms in all.

    Attributes:
        numbers: (A,) long, atomic numbers 1 .. 99, molecule by molecule.
        positions: (A, 3), Angstrom.
        sizes: (N,) long, atoms of every molecule, at least 1.
        targets: (N,) float64, the property scaled by `scaling`.
        identifiers: (N,) long, the molecules' numbers in their source.
        scaling: The map from the property to `targets`.
        edge_index: (2, E) long [source, target], numbers of atoms within their molecule, molecule by molecule; None if the
            network finds neighbours itself. See `with_edges`.
        edge_counts: (N,) long, edges of every molecule, or None.
    """

    numbers: Tensor
    positions: Tensor
    sizes: Tensor
    targets: Tensor
    identifiers: Tensor
    scaling: Scaling = dataclasses.field(default_factory=Scaling.identity)
    edge_index: Tensor | None = None
    edge_counts: Tensor | None = None

    def __len__(self) -> int:
        return self.sizes.shape[0]

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.positions.device

    def batch(self, indices: Tensor | Sequence[int], rotation: Tensor | None = None) -> dict[str, Tensor]:
        """Join the molecules `indices` (b of them, n atoms in all) into one graph.

        Args:
            indices: (b,) long tensor or a sequence of integers, 0 .. N-1.
            rotation: (3, 3), or (b, 3, 3) for one per molecule; rotates the positions about the origin.

        Returns:
            numbers (n,), positions (n, 3), graph (n,) long: the number 0 .. b-1 of each atom's molecule; targets (b, 1)
            float64; deviation () float64, the property's units per unit of the targets; and edge_index (2, e) long if the
            set has edges.
        """
        index = torch.as_tensor(indices, dtype=torch.long, device=self.device)
        atoms, graph = _rows(self._atom_starts, self.sizes, index)
        positions = self.positions.index_select(0, atoms)
        if rotation is not None:
            positions = turn(positions, rotation, graph)
        out = {
            "numbers": self.numbers.index_select(0, atoms),
            "positions": positions,
            "graph": graph,
            "targets": self.targets.index_select(0, index)[:, None],
            "deviation": self._deviation,
        }
        if self.edge_index is not None and self.edge_counts is not None:
            edges, owner = _rows(self._edge_starts, self.edge_counts, index)
            sizes = self.sizes.index_select(0, index)
            offsets = (sizes.cumsum(0) - sizes).index_select(0, owner)
            out["edge_index"] = self.edge_index.index_select(1, edges) + offsets
        return out

    def composition(self) -> Tensor:
        """Numbers of atoms of every element, (N, ELEMENTS) float64."""
        owner = torch.arange(len(self), device=self.device).repeat_interleave(self.sizes)
        counts = (owner * ELEMENTS + self.numbers).bincount(minlength=len(self) * ELEMENTS)
        return counts.view(-1, ELEMENTS).double()

    def with_edges(self, find: Callable[[Tensor, Tensor], Tensor]) -> Self:
        """Add the edges that `find(positions (n, 3), graph (n,))` returns: (2, e) [source, target], ordered by graph."""
        found, counts = [], []
        for start in range(0, len(self), CHUNK):
            part = torch.arange(start, min(start + CHUNK, len(self)), device=self.device)
            atoms, graph = _rows(self._atom_starts, self.sizes, part)
            edges = find(self.positions.index_select(0, atoms), graph)
            owner = graph[edges[1]]
            if bool((owner.diff() < 0).any()) or bool((graph[edges[0]] != owner).any()):
                raise DataError("Edges must lie within molecules and be ordered by molecule.")
            sizes = self.sizes[part]
            found.append(edges - (sizes.cumsum(0) - sizes)[owner])
            counts.append(owner.bincount(minlength=len(part)))
        return dataclasses.replace(self, edge_index=torch.cat(found, 1), edge_counts=torch.cat(counts))

    def subset(self, indices: Tensor | Sequence[int] | slice) -> Self:
        """Only the molecules `indices`, in that order."""
        index = torch.arange(len(self), device=self.device)[indices]
        atoms, _ = _rows(self._atom_starts, self.sizes, index)
        changed: dict[str, Any] = {}
        if self.edge_index is not None and self.edge_counts is not None:
            edges, _ = _rows(self._edge_starts, self.edge_counts, index)
            changed = {"edge_index": self.edge_index[:, edges], "edge_counts": self.edge_counts[index]}
        return dataclasses.replace(
            self,
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            sizes=self.sizes[index],
            targets=self.targets[index],
            identifiers=self.identifiers[index],
            **changed,
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The set on `device` with positions as `dtype`. Targets stay float64, which the largest energies need."""
        moved: dict[str, Any] = {
            f.name: value.to(device)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        moved["positions"] = moved["positions"].to(dtype)
        return dataclasses.replace(self, **moved)

    def __post_init__(self) -> None:
        count, atoms = self.sizes.shape[0], self.numbers.shape[0]
        for name, shape in (("positions", (atoms, 3)), ("targets", (count,)), ("identifiers", (count,))):
            if tuple(getattr(self, name).shape) != shape:
                raise DataError(
                    f"{name} must have the shape {shape}; got {tuple(getattr(self, name).shape)}."
                )
        if count and (int(self.sizes.min()) < 1 or int(self.sizes.sum()) != atoms):
            raise DataError(
                f"sizes must be at least 1 and add up to the {atoms} atoms; they add up to {int(self.sizes.sum())}."
            )
        if atoms and not 0 < int(self.numbers.min()) <= int(self.numbers.max()) < ELEMENTS:
            raise DataError(f"Atomic numbers must be 1 to {ELEMENTS - 1}.")
        if (self.edge_index is None) != (self.edge_counts is None):
            raise DataError("edge_index and edge_counts belong together: give both or neither.")
        self._atom_starts = self.sizes.cumsum(0) - self.sizes
        if self.edge_counts is not None:
            self._edge_starts = self.edge_counts.cumsum(0) - self.edge_counts
        self._deviation = torch.tensor(self.scaling.deviation, dtype=torch.float64, device=self.device)


def turn(positions: Tensor, rotation: Tensor, graph: Tensor) -> Tensor:
    """Compute R x for positions (n, 3) and a rotation (3, 3), or one per molecule (b, 3, 3), with graph (n,) as in a batch.

    It is computed element by element and not as a matrix product, as in `GraphSet`.
    """
    rotation = rotation.to(positions)
    rows = rotation.index_select(0, graph) if rotation.ndim == 3 else rotation[None]
    return (rows * positions[:, None, :]).sum(-1)


def _rows(starts: Tensor, counts: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """List the rows of the molecules `index` (b,), if molecule k has the rows starts[k] .. starts[k] + counts[k] - 1.

    Returns:
        The rows (r,), and for each row the position 0 .. b-1 of its molecule in `index`.
    """
    chosen = counts.index_select(0, index)
    owner = torch.arange(index.shape[0], device=index.device).repeat_interleave(chosen)
    shift = starts.index_select(0, index) - (chosen.cumsum(0) - chosen)
    return torch.arange(owner.shape[0], device=index.device) + shift.index_select(0, owner), owner


@dataclass
class MolecularFrames:
    """N frames of one molecule of n atoms.

    Attributes:
        numbers: (n,) long, atomic numbers 1 .. 99.
        positions: (N, n, 3), Angstrom.
        energies: (N,) float64, eV.
        forces: (N, n, 3), eV/Angstrom: minus the gradient of the energy.
        scaling: The map from eV to a network's targets. The deviation divides both energies and forces, so that scaled
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
        """The device of the tensors."""
        return self.positions.device

    @property
    def atoms(self) -> int:
        """Number of atoms n."""
        return self.numbers.shape[0]

    def batch(self, indices: Tensor | Sequence[int], rotation: Tensor | None = None) -> dict[str, Tensor]:
        """Join the frames `indices` (b of them) into one graph of b n atoms.

        Args:
            indices: (b,) long tensor or a sequence of integers, 0 .. N-1.
            rotation: (3, 3), or (b, 3, 3) for one per frame; rotates positions about the origin, and forces with them.

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
        """Numbers of atoms of every element, (ELEMENTS,) float64."""
        return self.numbers.bincount(minlength=ELEMENTS).double()

    def subset(self, indices: Tensor | Sequence[int] | slice) -> Self:
        """Only the frames `indices`, in that order."""
        return dataclasses.replace(
            self,
            positions=self.positions[indices],
            energies=self.energies[indices],
            forces=self.forces[indices],
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The set on `device` with positions and forces as `dtype`. Energies stay float64, which their size needs."""
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
    """Fit a scaling to training frames by their forces.

    The atomic references are the least-squares solution of smallest norm, so that the mean scaled energy is 0. The deviation is
    the root mean square of the forces' components in eV/Angstrom, which is also used for eV: the length unit stays the Angstrom.

    Args:
        frames: The training frames only.

    Raises:
        DataError: There are no frames.
    """
    fitted = Scaling.fit(frames.energies, frames.composition().expand(len(frames), -1), references=True)
    size = float(frames.forces.double().square().mean().sqrt())
    return dataclasses.replace(fitted, deviation=size if size > 0 else 1.0)
