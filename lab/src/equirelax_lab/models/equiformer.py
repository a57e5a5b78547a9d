"""Equiformer: graph attention with equivariant features, for energies of molecules.

Liao and Smidt: "Equiformer: equivariant graph attention transformer for 3D atomistic graphs", ICLR 2023 (arXiv 2206.11990),
section 4: depth-wise tensor products with radial weights, MLP attention, non-linear messages, equivariant layer norm, gates.

Differences from the paper. Irreps are those of O(3); the paper treats every irrep as even, so that its features do not transform
under reflections. Attention vanishes smoothly at the cutoff: the softmax has the envelope f and a neighbour "none" of logit 0,
a_ij = f_ij exp(z_ij) / (1 + sum_k f_ik exp(z_ik)), so that energies have two continuous derivatives. There is no dropout, which
is 0 in the paper's settings for MD17.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.elements import Elements
from equirelax_lab.models.fast.depthwise import DepthwiseProduct
from equirelax_lab.models.fast.join import join
from equirelax_lab.models.fast.linear import SteerableLinear
from equirelax_lab.models.gate import Gate
from equirelax_lab.models.molecular import (
    MD17_ELEMENTS,
    EdgeGeometry,
    Geometry,
    check_atoms,
    check_heads,
    molecule_sums,
    smooth_softmax,
)
from equirelax_lab.models.norms import EquivariantLayerNorm
from equirelax_lab.models.radial import RadialWeights
from equirelax_lab.models.stack import sum_rows

LEAK = 0.2  # slope of the attention's leaky ReLU on the far negative side


class GraphAttention(nn.Module):
    """Equivariant graph attention (section 4.2 and figure 1b), i the target, j the source of an edge.

    x_ij = linear_dst(x_i) + linear_src(x_j),   [z_ij, f_ij] = linear_message(x_ij (x)^radial Y_ij)
    v_ij = linear_value(gate(f_ij) (x) Y_ij),   x_i' = linear_out(sum_j a_ij v_ij),   a_ij = softmax_j(a^T leaky(z_ij))

    Per-path weights of the second product would be redundant with linear_value's, and are left out.
    """

    def __init__(
        self, hidden: o3.Irreps, harmonics: o3.Irreps, heads: int, basis: int, radial_width: int
    ) -> None:
        super().__init__()
        self.heads = heads
        self.gate = Gate(hidden)
        scalars = self.gate.scalars
        self.source = SteerableLinear(hidden, hidden)
        self.target = SteerableLinear(hidden, hidden, bias=False)
        self.product = DepthwiseProduct(hidden, harmonics, hidden)
        self.radial = RadialWeights(basis, radial_width, self.product.weight_numel)
        messages = (o3.Irreps(f"{scalars}x0e") + self.gate.irreps_in).simplify()
        self.message = SteerableLinear(self.product.irreps_out, messages)
        self.logits = nn.Parameter(torch.randn(heads, scalars // heads, 1) / (scalars // heads) ** 0.5)
        self.value = SteerableLinear(self.product.irreps_out, hidden)
        self.out = SteerableLinear(hidden, hidden)
        self.slots = [mul_ir.dim for mul_ir in hidden]

    def forward(self, x: Tensor, edges: EdgeGeometry) -> Tensor:
        """x (n, hidden.dim) -> (n, hidden.dim)."""
        ends = self.source(x).t().index_select(1, edges.source)
        ends = ends + self.target(x).t().index_select(1, edges.target)
        coupled = self.product(ends.t(), edges.couplings, self.radial(edges.basis))
        heads, message = (
            self.message(coupled).t().split_with_sizes([self.gate.scalars, self.gate.irreps_in.dim])
        )
        hidden = self.gate(message.t())
        values = self.value(self.product(hidden, edges.couplings)).t()
        attention = self._attention(heads, edges, x.shape[0])  # (heads, e)
        weighted = [
            (part.unflatten(0, (self.heads, -1)) * attention[:, None]).flatten(0, 1)
            for part in values.split_with_sizes(self.slots)
        ]
        return self.out(sum_rows(join(weighted), edges.target, x.shape[0]).t())

    def _attention(self, features: Tensor, edges: EdgeGeometry, nodes: int) -> Tensor:
        """(scalars, e) -> (heads, e)."""
        # the smooth leaky ReLU of the paper's code: slope 1 far right, LEAK far left
        leaky = LEAK * features + (1 - LEAK) * features * torch.sigmoid(features)
        z = (leaky.unflatten(0, (self.heads, -1)) * self.logits).sum(1)
        return smooth_softmax(z, edges, nodes)


class FeedForward(nn.Module):
    """Linear, gate, linear on atoms; attributes multiply the features, as in the paper's product with 1x0e."""

    def __init__(self, hidden: o3.Irreps, factor: int) -> None:
        super().__init__()
        self.gate = Gate(o3.Irreps([(factor * mul, ir) for mul, ir in hidden]))
        self.expand = SteerableLinear(hidden, self.gate.irreps_in.simplify())
        self.contract = SteerableLinear(self.gate.irreps_out, hidden)

    def forward(self, features: Tensor, attributes: Tensor) -> Tensor:
        """features (n, hidden.dim), attributes (n, 1) -> (n, hidden.dim)."""
        return self.contract(self.gate(self.expand(features * attributes)))


class EquiformerBlock(nn.Module):
    """x' = x + attention(norm(x)),   x'' = x' + ffn(norm(x'), attributes)  (figure 1a)."""

    def __init__(
        self, hidden: o3.Irreps, harmonics: o3.Irreps, heads: int, basis: int, radial_width: int, factor: int
    ) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = EquivariantLayerNorm(hidden), EquivariantLayerNorm(hidden)
        self.attention = GraphAttention(hidden, harmonics, heads, basis, radial_width)
        self.ffn = FeedForward(hidden, factor)

    def forward(self, x: Tensor, attributes: Tensor, edges: EdgeGeometry) -> Tensor:
        """x (n, hidden.dim), attributes (n, attributes.dim) -> (n, hidden.dim)."""
        x = x + self.attention(self.norm_1(x), edges)
        return x + self.ffn(self.norm_2(x), attributes)


class Equiformer(nn.Module):
    """Predicts one energy per molecule, E(3)-invariant. The defaults are the paper's sizes.

    Args:
        hidden: irreps of the features, 0e first, one slot for each irrep; multiplicities are multiples of `heads`.
        blocks: number of blocks, at least 1.
        heads: number of attention heads.
        cutoff: cutoff radius, in the unit of the positions (Angstrom).
        basis: number of radial basis functions, at least 2.
        radial_width: width of the radial perceptrons.
        ffn_factor: width of the feed-forward networks over that of the features.
        readout: width of the scalars from which atoms' energies are read.
        elements: atomic numbers that may occur.
        degree: average number of neighbours of an atom; sums over neighbours are divided by its square root.

    Attributes:
        hidden_irreps, attribute_irreps: irreps of the inputs of `blocks[i].ffn`.

    Raises:
        RepresentationError: a size, irrep or element is invalid.
    """

    def __init__(
        self,
        hidden: str | o3.Irreps = "128x0e+64x1o+32x2e",
        blocks: int = 6,
        heads: int = 4,
        cutoff: float = 5.0,
        basis: int = 32,
        radial_width: int = 64,
        ffn_factor: int = 3,
        readout: int = 512,
        elements: Sequence[int] = MD17_ELEMENTS,
        degree: float = 15.0,
    ) -> None:
        super().__init__()
        self.hidden_irreps = o3.Irreps(hidden)
        self.attribute_irreps = o3.Irreps("1x0e")
        _check(self.hidden_irreps, blocks, heads, cutoff, basis, radial_width, ffn_factor, readout, degree)
        self.degree = degree
        self.geometry = Geometry(self.hidden_irreps, cutoff, basis, "Equiformer")
        harmonics = self.geometry.harmonics
        scalars = o3.Irreps(f"{self.hidden_irreps.count('0e')}x0e")
        self.elements = Elements(elements, "Equiformer")
        self.embedding = SteerableLinear(f"{len(self.elements)}x0e", scalars)
        self.degree_product = DepthwiseProduct(scalars, harmonics, self.hidden_irreps)
        self.degree_radial = RadialWeights(basis, radial_width, self.degree_product.weight_numel)
        self.degree_linear = SteerableLinear(self.degree_product.irreps_out, self.hidden_irreps)
        self.blocks = nn.ModuleList(
            EquiformerBlock(self.hidden_irreps, harmonics, heads, basis, radial_width, ffn_factor)
            for _ in range(blocks)
        )
        self.norm = EquivariantLayerNorm(self.hidden_irreps)
        self.read = SteerableLinear(self.hidden_irreps, f"{readout}x0e")
        self.head = SteerableLinear(f"{readout}x0e", "1x0e")

    @classmethod
    def small(cls, elements: Sequence[int] = MD17_ELEMENTS, cutoff: float = 5.0) -> Equiformer:
        """Build a model of a size that trains on one CPU core."""
        return cls(
            "32x0e+16x1o+8x2e",
            blocks=2,
            cutoff=cutoff,
            radial_width=32,
            ffn_factor=2,
            readout=64,
            elements=elements,
        )

    def forward(self, numbers: Tensor, positions: Tensor, batch: Tensor) -> Tensor:
        """Predict energies (molecules,).

        Args:
            numbers: (n,) long, atomic numbers.
            positions: (n, 3), in the unit of the cutoff.
            batch: (n,) long, the molecule of every atom, in any order.

        Raises:
            RepresentationError: a shape or dtype is wrong, or an element is not among the model's.
            NonFiniteError: two atoms of one molecule are at the same place.
        """
        check_atoms(numbers, positions, batch, "Equiformer")
        edges = self.geometry(positions, batch)
        one_hot = self.elements.one_hot(numbers, positions)
        attributes = torch.ones_like(one_hot[:, :1])
        x = self._embed(one_hot, edges)
        for block in self.blocks:
            x = block(x, attributes, edges)
        atoms = self.head(nn.functional.silu(self.read(self.norm(x))))[:, 0]
        return molecule_sums(atoms, batch)

    def _embed(self, one_hot: Tensor, edges: EdgeGeometry) -> Tensor:
        """Element plus edge-degree embedding (section 4.2): (n, elements) -> (n, hidden.dim)."""
        nodes = one_hot.shape[0]
        ones = one_hot.new_ones(edges.source.shape[0], self.hidden_irreps.count("0e"))
        couplings = self.degree_product.couplings(edges.harmonics)
        near = self.degree_product(ones, couplings, self.degree_radial(edges.basis))
        near = self.degree_linear(near).t() * (edges.envelope / self.degree**0.5)
        x = sum_rows(near, edges.target, nodes)
        element = self.embedding(one_hot).t()
        return join([x[: element.shape[0]] + element, x[element.shape[0] :]]).t()


def _check(
    hidden: o3.Irreps,
    blocks: int,
    heads: int,
    cutoff: float,
    basis: int,
    radial_width: int,
    ffn_factor: int,
    readout: int,
    degree: float,
) -> None:
    """Raise RepresentationError if a size is invalid."""
    if min(blocks, heads, radial_width, ffn_factor, readout) < 1 or basis < 2:
        raise RepresentationError(
            "Equiformer: blocks, heads, radial_width, ffn_factor and readout must be at least 1 and basis at least 2, got "
            f"{blocks}, {heads}, {radial_width}, {ffn_factor}, {readout} and {basis}"
        )
    if not cutoff > 0 or not degree > 0:
        raise RepresentationError(f"Equiformer: cutoff and degree must be above 0, got {cutoff} and {degree}")
    check_heads("Equiformer", hidden, heads)
