"""SEGNN: steerable E(3)-equivariant graph network for N-body dynamics.

Brandstetter, Hesselink, van der Pol, Bekkers, Welling: "Geometric and physical quantities improve E(3) equivariant message
passing", ICLR 2022 (arXiv 2110.02905), sections 3 and 4.1; without its per-node mean of the positions, which breaks equivariance.
"""

from __future__ import annotations

from math import pi, sqrt

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax.models.gate import Gate
from equirelax.models.graph import gather, scatter_mean, scatter_sum
from equirelax.models.tensor_product import TensorProduct, fully_connected_instructions

MESSAGE_SCALARS = o3.Irreps("2x0e")  # distance, product of the charges
NODE_FEATURES = o3.Irreps("2x1o+1x0e")  # position, velocity, speed


def balanced_irreps(hidden: int, l_max: int, attributes: o3.Irreps) -> o3.Irreps:
    """n copies of every spherical harmonic up to l_max, n the least number with which a tensor product of these with
    ``attributes`` onto themselves has as many weights as a dense hidden x hidden layer: 64, 1 and 1x0e+1x1o give 32x0e+32x1o."""
    one = o3.Irreps.spherical_harmonics(l_max)
    weights = sum(
        mul1 * mul2 * mul_out
        for mul1, mul2, mul_out in (ins.path_shape for ins in fully_connected_instructions(one, attributes, one))
    )
    copies = 1
    while weights * copies**2 < hidden**2:
        copies += 1
    return o3.Irreps([(copies, mul_ir.ir) for mul_ir in one])


def spherical_harmonics(attributes: o3.Irreps, vectors: Tensor) -> Tensor:
    """Real spherical harmonics of the directions of vectors (rows, 3), "integral" normalisation -> (rows, attributes.dim).

    The zero vector has no direction: its components of l > 0 are 0.
    """
    if attributes.lmax > 1:
        return o3.spherical_harmonics(attributes, vectors, normalize=True, normalization="integral")
    direction = nn.functional.normalize(vectors, dim=-1) * sqrt(3 / (4 * pi))
    constant = torch.full_like(vectors[:, :1], 1 / sqrt(4 * pi))
    return torch.cat([constant, direction], dim=-1)


class SEGNNLayer(nn.Module):
    """One round of message passing.

    m_ij = gate(message_2(gate(message_1([x_i, x_j, scalars_ij], a_ij)), a_ij)),
    x_i' = x_i + update_2(gate(update_1([x_i, sum_j m_ij], a_i)), a_i), with i the target of the edge.
    """

    def __init__(self, features: o3.Irreps, edge_attributes: o3.Irreps, node_attributes: o3.Irreps) -> None:
        super().__init__()
        self.gate = Gate(features)
        self.message_1 = TensorProduct(features + features + MESSAGE_SCALARS, edge_attributes, self.gate.irreps_in)
        self.message_2 = TensorProduct(features, edge_attributes, self.gate.irreps_in)
        self.update_1 = TensorProduct(features + features, node_attributes, self.gate.irreps_in)
        self.update_2 = TensorProduct(features, node_attributes, features)

    def forward(
        self, x: Tensor, edge_index: Tensor, scalars: Tensor, edge_attributes: Tensor, node_attributes: Tensor
    ) -> Tensor:
        """x (n, features.dim), edge_index (2, e) [source, target], scalars (e, 2), attributes of edges and nodes -> (n, features.dim)."""
        source, target = edge_index[0], edge_index[1]
        ends = torch.cat([gather(x.t(), target), gather(x.t(), source), scalars.t()]).t()
        messages = self.gate(self.message_1(ends, edge_attributes))
        messages = self.gate(self.message_2(messages, edge_attributes))
        received = scatter_sum(messages.t(), target, x.shape[0])
        update = self.gate(self.update_1(torch.cat([x.t(), received]).t(), node_attributes))
        return x + self.update_2(update, node_attributes)


class SEGNN(nn.Module):
    """Predicts the displacement of every body from positions, velocities and charges.

    O(3)-equivariant (positions are read as they are); E(3)-equivariant with ``centre=True``, which subtracts the mean
    position of every graph.

    Args:
        hidden: irreps of the hidden features ("32x0e+32x1o", 0e first), or the width of a dense network to be matched in
            weights: see `balanced_irreps`.
        l_max: largest l of the hidden features where ``hidden`` is a number.
        layers: number of message passing layers (>= 1).
        lmax_attributes: largest l of the edge and node attributes (>= 1).
        centre: whether to subtract each graph's mean position.

    Raises:
        RepresentationError: if hidden has no 0e, or irreps that no path reaches.
    """

    def __init__(
        self,
        hidden: int | str | o3.Irreps = 64,
        l_max: int = 1,
        layers: int = 4,
        lmax_attributes: int = 1,
        centre: bool = False,
    ) -> None:
        super().__init__()
        if lmax_attributes < 1 or layers < 1:
            raise RepresentationError(
                f"SEGNN: lmax_attributes and layers must be at least 1, got {lmax_attributes} and {layers}"
            )
        self.attributes = o3.Irreps.spherical_harmonics(lmax_attributes)
        self.hidden = (
            balanced_irreps(hidden, l_max, self.attributes) if isinstance(hidden, int) else o3.Irreps(hidden)
        )
        self.centre = centre
        self.embedding = TensorProduct(NODE_FEATURES, self.attributes, self.hidden)
        self.layers = nn.ModuleList(
            SEGNNLayer(self.hidden, self.attributes, self.attributes) for _ in range(layers)
        )
        self.gate = Gate(self.hidden)
        self.readout_1 = TensorProduct(self.hidden, self.attributes, self.gate.irreps_in)
        self.readout_2 = TensorProduct(self.hidden, self.attributes, "1x1o")

    def forward(
        self, positions: Tensor, velocities: Tensor, charges: Tensor, edge_index: Tensor, graph: Tensor | None = None
    ) -> Tensor:
        """Displacement (n, 3) of every body.

        Args:
            positions, velocities: (n, 3).
            charges: (n, 1).
            edge_index: (2, e) long, rows source and target.
            graph: (n,) long, the graph of every node, numbered from 0 in any order; None means one graph. Read only with ``centre=True``.
        """
        source, target = edge_index[0], edge_index[1]
        if self.centre:
            positions = positions - self._centres(positions, graph)
        relative = positions.index_select(0, source) - positions.index_select(0, target)  # (e, 3)
        charge_products = charges.index_select(0, source) * charges.index_select(0, target)  # (e, 1)
        scalars = torch.cat([torch.linalg.vector_norm(relative, dim=1, keepdim=True), charge_products], dim=1)
        edge_attributes = spherical_harmonics(self.attributes, relative)
        node_attributes = self._node_attributes(edge_attributes, target, velocities)
        speeds = torch.linalg.vector_norm(velocities, dim=1, keepdim=True)
        x = self.embedding(torch.cat([positions, velocities, speeds], dim=1), node_attributes)
        for layer in self.layers:
            x = layer(x, edge_index, scalars, edge_attributes, node_attributes)
        return self.readout_2(self.gate(self.readout_1(x, node_attributes)), node_attributes)

    def _node_attributes(self, edge_attributes: Tensor, target: Tensor, velocities: Tensor) -> Tensor:
        """Mean attribute of the incoming edges plus the velocity's spherical harmonics; the 0e component is 1."""
        incoming = scatter_mean(edge_attributes.t(), target, velocities.shape[0]).t()
        attributes = incoming + spherical_harmonics(self.attributes, velocities)
        return torch.cat([torch.ones_like(attributes[:, :1]), attributes[:, 1:]], dim=1)

    @staticmethod
    def _centres(positions: Tensor, graph: Tensor | None) -> Tensor:
        """Mean position of every node's graph: (n, 3), or (1, 3) for one graph."""
        if graph is None:
            return positions.mean(dim=0, keepdim=True)
        # as many slots as nodes are always enough, and need no look at the largest number
        means = scatter_mean(positions.t(), graph, positions.shape[0])
        return gather(means, graph).t()
