"""SEGNN: steerable E(3)-equivariant graph network for N-body dynamics.

Brandstetter, Hesselink, van der Pol, Bekkers, Welling: "Geometric and physical quantities improve E(3) equivariant
message passing", ICLR 2022 (arXiv 2110.02905), sections 3 and 4.1; without its per-node mean of the positions, which
breaks the symmetry.
"""

from __future__ import annotations

from math import pi, sqrt
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.fast import is_enabled
from equirelax_lab.models.fast.messages import Messages, Plan
from equirelax_lab.models.fast.switch import is_hooked
from equirelax_lab.models.gate import Gate
from equirelax_lab.models.stack import Stack, centres, mean_rows, select, sum_rows
from equirelax_lab.models.tensor_product import TensorProduct, fully_connected_instructions

MESSAGE_SCALARS = o3.Irreps("2x0e")  # distance, product of the charges
NODE_FEATURES = o3.Irreps("2x1o+1x0e")  # position, velocity, speed
CONSTANTS = {"integral": 1 / sqrt(4 * pi), "component": 1.0}
"""e3nn's normalisation of spherical harmonics -> that of l = 0."""


def balanced_irreps(hidden: int, l_max: int, attributes: o3.Irreps) -> o3.Irreps:
    """Choose the fewest copies of every spherical harmonic up to l_max that have as many weights as a dense layer.

    The tensor product of these irreps with the attributes onto themselves has at least hidden x hidden weights: 64, 1 and
    1x0e+1x1o give 32x0e+32x1o.
    """
    one = o3.Irreps.spherical_harmonics(l_max)
    paths = len(fully_connected_instructions(one, attributes, one))
    copies = 1
    while paths * copies**2 < hidden**2:
        copies += 1
    return o3.Irreps([(copies, ir) for _, ir in one])


def spherical_harmonics(l_max: int, vectors: Tensor, normalization: str = "integral") -> Tensor:
    """Compute spherical harmonics of the directions of vectors (rows, 3), normalised as in `CONSTANTS`: (rows, (l_max + 1)^2).

    The zero vector has no direction: its components of l > 0 are 0.
    """
    if l_max > 1:
        return o3.spherical_harmonics(
            list(range(l_max + 1)), vectors, normalize=True, normalization=normalization
        )
    constant = CONSTANTS[normalization]
    direction = nn.functional.normalize(vectors, dim=-1) * (sqrt(3) * constant)
    return torch.cat([torch.full_like(vectors[:, :1], constant), direction], dim=-1)


class Edges(NamedTuple):
    """Edges and the inputs of messages, once for all edges and once stacked by graphs (see `Stack`).

    edge_index (2, e) [source, target], scalars (e, p), attributes (e, attributes.dim); stacked (p, edges of one graph, graphs)
    and (attributes.dim, edges of one graph, graphs).
    """

    edge_index: Tensor
    scalars: Tensor
    attributes: Tensor
    stack: Stack
    stacked_scalars: Tensor
    stacked_attributes: Tensor


class SEGNNLayer(nn.Module):
    """One round of message passing; i is the target of an edge, j its source.

    m_ij = gate(message_2(gate(message_1([x_i, x_j, scalars_ij], a_ij)), a_ij))
    x_i' = x_i + update_2(gate(update_1([x_i, sum_j m_ij], a_i)), a_i)

    All messages are computed at once (`fast.messages`) if the features are of l <= 1 and the modules of the message have
    no hooks. Otherwise these modules are called as they are, on the rows of all edges. The results differ only by rounding.

    Args:
        features: irreps of the nodes' features.
        attributes: irreps of the attributes of edges and nodes, 0e first.
        message_scalars: irreps of the further inputs of messages from an edge.
        constant: the 0e attribute of every edge.
    """

    def __init__(
        self,
        features: o3.Irreps,
        attributes: o3.Irreps,
        message_scalars: o3.Irreps = MESSAGE_SCALARS,
        constant: float = CONSTANTS["integral"],
    ) -> None:
        super().__init__()
        self.gate = Gate(features)
        self.message_1 = TensorProduct(features + features + message_scalars, attributes, self.gate.irreps_in)
        self.message_2 = TensorProduct(features, attributes, self.gate.irreps_in)
        self.update_1 = TensorProduct(features + features, attributes, self.gate.irreps_in)
        self.update_2 = TensorProduct(features, attributes, features)
        first, second = self.message_1.coupling, self.message_2.coupling
        self.plan: Plan | None = None
        if first is not None and second is not None and [dim for _, dim in second.slots.inputs] == [1, 3]:
            self.plan = Plan.of(first.slots, second.slots, self.gate.gating, constant)

    def forward(self, x: Tensor, edges: Edges, node_attributes: Tensor) -> Tensor:
        """x (n, features.dim), node_attributes (n, attributes.dim) -> (n, features.dim)."""
        if self.plan is not None and self._joins(x):
            received = self._joint(x.t(), edges, self.plan)
        else:
            received = self._by_modules(x.t(), edges)
        update = self.gate(self.update_1(torch.cat([x.t(), received]).t(), node_attributes))
        return x + self.update_2(update, node_attributes)

    def _by_modules(self, x: Tensor, edges: Edges) -> Tensor:
        """Compute the sums of messages (dim, n) by calling every module on the rows of all edges."""
        source, target = edges.edge_index[0], edges.edge_index[1]
        ends = torch.cat([select(x, 1, target), select(x, 1, source), edges.scalars.t()])
        messages = self.gate(self.message_1(ends.t(), edges.attributes))
        messages = self.gate(self.message_2(messages, edges.attributes))
        return sum_rows(messages.t(), target, x.shape[1])

    def _joint(self, x: Tensor, edges: Edges, plan: Plan) -> Tensor:
        """Compute the same sums for all messages at once, on stacked graphs."""
        first, second = self.message_1, self.message_2
        weights = (first.weight, first.bias, second.weight, second.bias)
        geometry = (edges.stacked_scalars, edges.stacked_attributes)
        return Messages(plan, edges.stack)(self, x, *geometry, *weights)

    def _joins(self, x: Tensor) -> bool:
        """Whether the modules of the message have no hooks and are those that `messages` computes."""
        products = (self.message_1, self.message_2)
        if not is_enabled() or torch.is_autocast_enabled(x.device.type):
            return False
        return not any(type(m) is not TensorProduct or is_hooked(m) for m in products) and not is_hooked(
            self.gate
        )


class SEGNN(nn.Module):
    """Predicts the displacement of every body from positions, velocities and charges.

    O(3)-equivariant (positions are not centred); E(3)-equivariant with ``centre=True``, which subtracts the mean
    position of every graph.

    Args:
        hidden: irreps of the hidden features ("32x0e+32x1o", 0e first), or the width of a dense network whose number of
            weights is matched, see `balanced_irreps`.
        l_max: largest l of the hidden features if ``hidden`` is a number.
        layers: number of message passing layers, at least 1.
        lmax_attributes: largest l of the edge and node attributes, at least 1.
        centre: whether to subtract each graph's mean position.
        axis_centre: whether to subtract from every position its own mean over x, y and z, as in the authors' code. The
            network is then not equivariant.

    Raises:
        RepresentationError: `hidden` is not 0e followed by higher irreps, or has irreps that no path reaches.
    """

    def __init__(
        self,
        hidden: int | str | o3.Irreps = 64,
        l_max: int = 1,
        layers: int = 4,
        lmax_attributes: int = 1,
        centre: bool = False,
        axis_centre: bool = False,
    ) -> None:
        super().__init__()
        if lmax_attributes < 1 or layers < 1:
            raise RepresentationError(
                f"SEGNN: lmax_attributes and layers must be at least 1, got {lmax_attributes} and {layers}"
            )
        if isinstance(hidden, int) and l_max > lmax_attributes + 1:
            raise RepresentationError(
                f"SEGNN: l_max is {l_max}, but products of vectors with attributes of lmax_attributes {lmax_attributes} "
                f"reach {lmax_attributes + 1}: make l_max smaller, or lmax_attributes larger"
            )
        self.lmax_attributes = lmax_attributes
        self.attributes = o3.Irreps.spherical_harmonics(lmax_attributes)
        self.hidden = (
            balanced_irreps(hidden, l_max, self.attributes) if isinstance(hidden, int) else o3.Irreps(hidden)
        )
        self.centre, self.axis_centre = centre, axis_centre
        self.gate = Gate(self.hidden)
        self.embedding = TensorProduct(NODE_FEATURES, self.attributes, self.hidden)
        self.layers = nn.ModuleList(SEGNNLayer(self.hidden, self.attributes) for _ in range(layers))
        self.readout_1 = TensorProduct(self.hidden, self.attributes, self.gate.irreps_in)
        self.readout_2 = TensorProduct(self.hidden, self.attributes, "1x1o")

    def forward(
        self,
        positions: Tensor,
        velocities: Tensor,
        charges: Tensor,
        edge_index: Tensor,
        graph: Tensor | None = None,
    ) -> Tensor:
        """Predict the displacement (n, 3) of every body.

        Args:
            positions, velocities: (n, 3).
            charges: (n, 1).
            edge_index: (2, e) long, rows source and target.
            graph: (n,) long, the graph of every node, numbers 0 to n - 1 in any order; None means one graph. Read only
                with ``centre=True``.
        """
        if self.centre:
            positions = positions - centres(positions, graph)
        edges = self._edges(positions, charges, edge_index)
        node_attributes = self._node_attributes(edges, velocities)
        speeds = torch.linalg.vector_norm(velocities, dim=1, keepdim=True)
        read = positions - positions.mean(dim=1, keepdim=True) if self.axis_centre else positions
        x = self.embedding(torch.cat([read, velocities, speeds], dim=1), node_attributes)
        for layer in self.layers:
            x = layer(x, edges, node_attributes)
        return self.readout_2(self.gate(self.readout_1(x, node_attributes)), node_attributes)

    def _edges(self, positions: Tensor, charges: Tensor, edge_index: Tensor) -> Edges:
        """Compute distance and product of the charges, and the spherical harmonics of x_source - x_target."""
        source, target = edge_index[0], edge_index[1]
        relative = select(positions, 0, source) - select(positions, 0, target)  # (e, 3)
        distances = torch.linalg.vector_norm(relative, dim=1, keepdim=True)
        products = select(charges, 0, source) * select(charges, 0, target)
        scalars = torch.cat([distances, products], dim=1)
        attributes = spherical_harmonics(self.lmax_attributes, relative)
        stack = Stack.of(edge_index, positions.shape[0])
        return Edges(
            edge_index, scalars, attributes, stack, stack.stack(scalars.t()), stack.stack(attributes.t())
        )

    def _node_attributes(self, edges: Edges, velocities: Tensor) -> Tensor:
        """Compute the mean attribute of the incoming edges plus the velocity's spherical harmonics; the 0e component is 1."""
        incoming = mean_rows(edges.attributes.t(), edges.edge_index[1], velocities.shape[0])
        attributes = incoming + spherical_harmonics(self.lmax_attributes, velocities).t()
        return torch.cat([torch.ones_like(attributes[:1]), attributes[1:]]).t()
