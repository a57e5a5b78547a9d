"""SEGNN for molecules: one number per molecule from atomic numbers and positions.

Brandstetter et al., ICLR 2022 (arXiv 2110.02905), section 4.2, QM9. Layers are those of `equirelax_lab.models.segnn`; messages
read the distance, attributes are the spherical harmonics of x_source - x_target and, at atoms, their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.elements import Elements
from equirelax_lab.models.gate import Gate
from equirelax_lab.models.norms import EquivariantInstanceNorm
from equirelax_lab.models.segnn import CONSTANTS, Edges, SEGNNLayer, balanced_irreps, spherical_harmonics
from equirelax_lab.models.stack import Stack, mean_rows
from equirelax_lab.models.tensor_product import TensorProduct

QM9_ELEMENTS = (1, 6, 7, 8, 9)
DISTANCE = o3.Irreps("1x0e")


class MolecularSEGNN(nn.Module):
    """Predicts one invariant number per molecule: E(3)-invariant.

    Atoms start from the one-hot element. After the layers each gives as many scalars as the hidden features have irreps,
    which are pooled over the molecule and read by a perceptron of two layers.

    Args:
        hidden: irreps of the hidden features ("32x0e+32x1o", 0e first), or the width of a dense network whose number of
            weights is matched, see `balanced_irreps`.
        l_max: largest l of the hidden features if ``hidden`` is a number.
        layers: number of message passing layers, at least 1.
        lmax_attributes: largest l of the edge and node attributes, at least 1.
        elements: atomic numbers that may occur.
        pooling: "sum" or "mean" over a molecule's atoms.
        norm: "instance" normalises the features after every layer over the atoms of a molecule; "none" does not.
        distances: the input of messages: the distance ("plain") or its square ("squared").
        harmonics: "integral" or "component", e3nn's normalisation of spherical harmonics.

    Raises:
        RepresentationError: a size, element or pooling is invalid, or `hidden` has irreps that no path reaches.
    """

    def __init__(
        self,
        hidden: int | str | o3.Irreps = 128,
        l_max: int = 2,
        layers: int = 5,
        lmax_attributes: int = 3,
        elements: Sequence[int] = QM9_ELEMENTS,
        pooling: str = "sum",
        norm: str = "none",
        distances: str = "plain",
        harmonics: str = "integral",
    ) -> None:
        super().__init__()
        if lmax_attributes < 1 or layers < 1:
            raise RepresentationError(
                f"MolecularSEGNN: lmax_attributes and layers must be at least 1, got {lmax_attributes} and {layers}"
            )
        if isinstance(hidden, int) and l_max > lmax_attributes:
            raise RepresentationError(
                f"MolecularSEGNN: l_max is {l_max}, but products of atoms with attributes reach lmax_attributes, "
                f"{lmax_attributes}: make l_max smaller, or lmax_attributes larger"
            )
        for name, value, known in (
            ("pooling", pooling, ("sum", "mean")),
            ("norm", norm, ("none", "instance")),
            ("distances", distances, ("plain", "squared")),
            ("harmonics", harmonics, tuple(CONSTANTS)),
        ):
            if value not in known:
                raise RepresentationError(
                    f"MolecularSEGNN: {name} is {value!r}; choose {' or '.join(map(repr, known))}"
                )
        self.lmax_attributes, self.pooling = lmax_attributes, pooling
        self.distances, self.harmonics = distances, harmonics
        self.elements = Elements(elements, "MolecularSEGNN")
        self.attributes = o3.Irreps.spherical_harmonics(lmax_attributes)
        self.hidden = (
            balanced_irreps(hidden, l_max, self.attributes) if isinstance(hidden, int) else o3.Irreps(hidden)
        )
        self.gate = Gate(self.hidden)
        pooled = self.hidden.num_irreps
        self.embedding = TensorProduct(f"{len(self.elements)}x0e", self.attributes, self.hidden)
        self.layers = nn.ModuleList(
            SEGNNLayer(self.hidden, self.attributes, DISTANCE, CONSTANTS[harmonics]) for _ in range(layers)
        )
        self.norms = nn.ModuleList(
            EquivariantInstanceNorm(self.hidden) for _ in range(layers if norm == "instance" else 0)
        )
        self.readout_1 = TensorProduct(self.hidden, self.attributes, self.gate.irreps_in)
        self.readout_2 = TensorProduct(self.hidden, self.attributes, f"{pooled}x0e")
        self.head = nn.Sequential(nn.Linear(pooled, pooled), nn.SiLU(), nn.Linear(pooled, 1))

    def forward(
        self, numbers: Tensor, positions: Tensor, edge_index: Tensor, graph: Tensor | None = None
    ) -> Tensor:
        """Predict one number per molecule, (graphs, 1).

        Args:
            numbers: (n,) long, atomic numbers.
            positions: (n, 3).
            edge_index: (2, e) long, rows source and target.
            graph: (n,) long, the molecule of every atom, 0 to graphs - 1 in any order; None means one molecule.

        Raises:
            RepresentationError: an element is not among the model's.
        """
        graph = torch.zeros_like(numbers) if graph is None else graph
        edges = self._edges(positions, edge_index)
        node_attributes = mean_rows(edges.attributes.t(), edge_index[1], positions.shape[0])
        node_attributes = torch.cat([torch.ones_like(node_attributes[:1]), node_attributes[1:]]).t()
        x = self.embedding(self.elements.one_hot(numbers, positions), node_attributes)
        for i, layer in enumerate(self.layers):
            x = layer(x, edges, node_attributes)
            if len(self.norms):
                x = self.norms[i](x, graph)
        atoms = self.readout_2(self.gate(self.readout_1(x, node_attributes)), node_attributes)
        count = 0 if graph.shape[0] == 0 else int(graph.max()) + 1
        molecules = atoms.new_zeros(count, atoms.shape[1]).index_add(0, graph, atoms)
        if self.pooling == "mean":
            molecules = molecules / graph.bincount(minlength=count).clamp(min=1)[:, None]
        return self.head(molecules)

    def _edges(self, positions: Tensor, edge_index: Tensor) -> Edges:
        """Compute distances or their squares, and the spherical harmonics of x_source - x_target."""
        relative = positions.index_select(0, edge_index[0]) - positions.index_select(0, edge_index[1])
        distances = torch.linalg.vector_norm(relative, dim=1, keepdim=True)
        if self.distances == "squared":
            distances = distances.square()
        attributes = spherical_harmonics(self.lmax_attributes, relative, self.harmonics)
        stack = Stack.of(edge_index, positions.shape[0])
        return Edges(
            edge_index, distances, attributes, stack, stack.stack(distances.t()), stack.stack(attributes.t())
        )
