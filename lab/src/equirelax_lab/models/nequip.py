"""NequIP from its own package, unmodified, as a model of energies: (numbers, positions, molecules) -> energies.

Batzner et al.: "E(3)-equivariant graph neural networks for data-efficient and accurate interatomic potentials", Nature
Communications 2022 (arXiv 2101.03164). Needs the package nequip (the extra `md17`).
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.molecular import MD17_ELEMENTS, check_atoms
from equirelax_lab.models.radius import radius_graph

UNKNOWN = -1
"""Entry in the table of types for elements that the model does not know."""
COMPILER_OPTIONS = ("capture_dynamic_output_shape_ops", "capture_scalar_outputs")


class NequIP(nn.Module):
    """Wraps `nequip.model.NequIPGNNModel`, finds neighbours, and returns only energies; E(3)-invariant.

    Forces come from `ConservativeForces`. The defaults are those of the package. Energies are the sums of the network, neither
    scaled nor shifted: the data are scaled instead.

    Args:
        layers: number of interaction blocks, at least 1.
        l_max: largest degree of the features, at least 0.
        features: multiplicity of every irrep of the features, at least 1.
        parity: whether the features have both parities of every degree.
        radial_width: width of the radial perceptrons, at least 1.
        cutoff: cutoff radius, in the unit of the positions (Angstrom).
        neighbours: approximate number of neighbours of an atom; sums over neighbours are divided by its square root.
        elements: different atomic numbers that may occur.

    Raises:
        RepresentationError: a size is invalid, or an element occurs twice.
        ImportError: nequip is not installed.
    """

    types: Tensor

    def __init__(
        self,
        layers: int = 4,
        l_max: int = 1,
        features: int = 32,
        parity: bool = True,
        radial_width: int = 128,
        cutoff: float = 4.0,
        neighbours: float = 10.0,
        elements: Sequence[int] = MD17_ELEMENTS,
    ) -> None:
        super().__init__()
        if min(layers, features, radial_width) < 1 or l_max < 0 or not (cutoff > 0 and neighbours > 0):
            raise RepresentationError(
                "NequIP: layers, features and radial_width must be at least 1, l_max at least 0, cutoff and neighbours above 0; "
                f"got {layers}, {features}, {radial_width}, {l_max}, {cutoff} and {neighbours}"
            )
        if not elements or len(set(elements)) < len(elements) or min(elements) < 1:
            raise RepresentationError(
                f"NequIP: elements must be different atomic numbers, got {tuple(elements)}"
            )
        self.cutoff, self.elements = cutoff, tuple(elements)
        types = torch.full((max(elements) + 1,), UNKNOWN)
        types[list(elements)] = torch.arange(len(elements))
        self.register_buffer("types", types, persistent=False)
        # The network draws its weights from its own seed, which is taken from torch's random state here.
        seed = int(torch.randint(2**31 - 1, ()))
        dtype = torch.get_default_dtype()
        with _process_unchanged():
            from nequip.model import NequIPGNNModel
            from nequip.utils.global_state import set_global_state

            set_global_state()
            self.network = NequIPGNNModel(
                seed=seed,
                model_dtype=str(dtype).removeprefix("torch."),
                type_names=[f"Z{number}" for number in elements],
                r_max=cutoff,
                num_layers=layers,
                l_max=l_max,
                num_features=features,
                parity=parity,
                radial_mlp_width=radial_width,
                avg_num_neighbors=neighbours,
                per_type_energy_scales=1.0,
                per_type_energy_shifts=0.0,
                do_derivatives=False,
            )

    @classmethod
    def small(cls, elements: Sequence[int] = MD17_ELEMENTS, cutoff: float = 4.0) -> NequIP:
        """Build a model of the shape of the package's preset S, with fewer features, that trains on one CPU core."""
        return cls(layers=2, features=16, parity=False, radial_width=32, cutoff=cutoff, elements=elements)

    def forward(self, numbers: Tensor, positions: Tensor, batch: Tensor) -> Tensor:
        """Predict energies (molecules,) in the positions' dtype.

        Args:
            numbers: (n,) long, atomic numbers.
            positions: (n, 3), in the unit of the cutoff.
            batch: (n,) long, the molecule of every atom.

        Raises:
            RepresentationError: a shape or dtype is wrong, or an element is not among the model's.
        """
        check_atoms(numbers, positions, batch, "NequIP")
        types = self.types.index_select(0, numbers.clamp(0, len(self.types) - 1))
        if bool((types == UNKNOWN).any() | (numbers >= len(self.types)).any()):
            unknown = sorted(set(numbers.tolist()) - set(self.elements))
            raise RepresentationError(
                f"NequIP: the elements {unknown} are not among the model's {list(self.elements)}; name them in `elements`"
            )
        found = self.network(
            {
                "pos": positions,
                "atom_types": types,
                "batch": batch,
                "num_atoms": batch.bincount(),
                "edge_index": radius_graph(positions, batch, self.cutoff).flip(0),
            }
        )
        energies: Tensor = found["total_energy"]
        return energies[:, 0].to(positions.dtype)


@contextmanager
def _process_unchanged() -> Iterator[None]:
    """Undo NequIP's process-wide changes: torch's default dtype, options of its compiler and of e3nn, the seeds."""
    import e3nn

    compiler: Any = importlib.import_module("torch._dynamo.config")
    dtype, sharing = torch.get_default_dtype(), torch.multiprocessing.get_sharing_strategy()
    options, pythons, numpys = e3nn.get_optimization_defaults(), random.getstate(), np.random.get_state()
    captures = {name: getattr(compiler, name) for name in COMPILER_OPTIONS}
    with torch.random.fork_rng():
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.multiprocessing.set_sharing_strategy(sharing)
            e3nn.set_optimization_defaults(**options)
            random.setstate(pythons)
            np.random.set_state(numpys)
            for name, value in captures.items():
                setattr(compiler, name, value)
