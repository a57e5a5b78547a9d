"""SE(3)-Transformer: dot-product attention between steerable features, for energies of molecules.

Fuchs, Worrall, Fischer, Welling: "SE(3)-Transformers: 3D roto-translation equivariant attention networks", NeurIPS 2020
(arXiv 2006.10503), section 3, equations 10 to 12.

Differences from the paper. Its kernels have a radial weight for every pair of channels. Here products are depth-wise with
radial weights, and a linear map mixes channels afterwards: the same kernels with low-rank radial parts. Irreps are those
of O(3). Attention vanishes smoothly at the cutoff (`equirelax_lab.models.molecular.smooth_softmax`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from e3nn import o3
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.elements import Elements
from equirelax_lab.models.fast.depthwise import DepthwiseProduct
from equirelax_lab.models.fast.join import join
from equirelax_lab.models.fast.linear import SteerableLinear
from equirelax_lab.models.molecular import (
    MD17_ELEMENTS,
    EdgeGeometry,
    Geometry,
    check_atoms,
    check_heads,
    molecule_sums,
    smooth_softmax,
)
from equirelax_lab.models.norms import NormActivation
from equirelax_lab.models.radial import RadialWeights
from equirelax_lab.models.stack import sum_rows


class SE3Attention(nn.Module):
    """x_i' = self_interaction(x_i) + out(sum_j a_ij v_ij),   a_ij = softmax_j(q_i . k_ij / sqrt(d)), for each head

    with q_i = queries(x_i), k_ij = keys(x_j (x)^radial Y_ij), v_ij = values(x_j (x)^radial Y_ij); j is the source of an edge. The
    product of irreps with themselves is summed over components and over a head's channels: a scalar.
    """

    def __init__(self, hidden: o3.Irreps, heads: int, basis: int, radial_width: int) -> None:
        super().__init__()
        harmonics = o3.Irreps.spherical_harmonics(hidden.lmax)
        self.heads = heads
        self.product = DepthwiseProduct(hidden, harmonics, hidden)
        self.radial = RadialWeights(basis, radial_width, self.product.weight_numel)
        self.queries = SteerableLinear(hidden, hidden, bias=False)
        self.keys = SteerableLinear(self.product.irreps_out, hidden, bias=False)
        self.values = SteerableLinear(self.product.irreps_out, hidden, bias=False)
        self.out = SteerableLinear(hidden, hidden)
        self.self_interaction = SteerableLinear(hidden, hidden, bias=False)
        self.slots = [mul_ir.dim for mul_ir in hidden]

    def forward(self, x: Tensor, edges: EdgeGeometry) -> Tensor:
        """x (n, hidden.dim) -> (n, hidden.dim)."""
        nodes = x.shape[0]
        near = x.t().index_select(1, edges.source).t()
        coupled = self.product(near, edges.couplings, self.radial(edges.basis))
        asked = self.queries(x).t().index_select(1, edges.target)
        answers = (asked * self.keys(coupled).t()).split_with_sizes(self.slots)
        z = sum(part.unflatten(0, (self.heads, -1)).sum(1) for part in answers)
        attention = smooth_softmax(z * sqrt(self.heads / sum(self.slots)), edges, nodes)
        weighted = [
            (part.unflatten(0, (self.heads, -1)) * attention[:, None]).flatten(0, 1)
            for part in self.values(coupled).t().split_with_sizes(self.slots)
        ]
        received = sum_rows(join(weighted), edges.target, nodes).t()
        return self.self_interaction(x) + self.out(received)


class SE3TransformerLayer(nn.Module):
    """norm non-linearity(attention(x))."""

    def __init__(self, hidden: o3.Irreps, heads: int, basis: int, radial_width: int) -> None:
        super().__init__()
        self.attention = SE3Attention(hidden, heads, basis, radial_width)
        self.activation = NormActivation(hidden)

    def forward(self, x: Tensor, edges: EdgeGeometry) -> Tensor:
        """x (n, hidden.dim) -> (n, hidden.dim)."""
        return self.activation(self.attention(x, edges))


class SE3Transformer(nn.Module):
    """Predicts one energy per molecule, E(3)-invariant. The defaults are close to the paper's sizes on QM9.

    Args:
        hidden: irreps of the features, 0e first, one slot for each irrep; multiplicities are multiples of `heads`.
        layers: number of attention layers, at least 1.
        heads: number of attention heads.
        cutoff: cutoff radius, in the unit of the positions (Angstrom).
        basis: number of radial basis functions, at least 2.
        radial_width: width of the radial perceptrons.
        readout: width of the scalars from which atoms' energies are read.
        elements: atomic numbers that may occur.

    Raises:
        RepresentationError: a size, irrep or element is invalid.
    """

    def __init__(
        self,
        hidden: str | o3.Irreps = "32x0e+32x1o+32x2e",
        layers: int = 7,
        heads: int = 8,
        cutoff: float = 5.0,
        basis: int = 32,
        radial_width: int = 32,
        readout: int = 128,
        elements: Sequence[int] = MD17_ELEMENTS,
    ) -> None:
        super().__init__()
        self.hidden_irreps = o3.Irreps(hidden)
        if min(layers, heads, radial_width, readout) < 1 or basis < 2 or not cutoff > 0:
            raise RepresentationError(
                "SE3Transformer: layers, heads, radial_width and readout must be at least 1, basis at least 2, the cutoff "
                f"above 0; got {layers}, {heads}, {radial_width}, {readout}, {basis} and {cutoff}"
            )
        check_heads("SE3Transformer", self.hidden_irreps, heads)
        self.scalars = self.hidden_irreps[0].mul
        self.elements = Elements(elements, "SE3Transformer")
        self.geometry = Geometry(self.hidden_irreps, cutoff, basis, "SE3Transformer")
        self.embedding = SteerableLinear(f"{len(self.elements)}x0e", f"{self.scalars}x0e")
        self.layers = nn.ModuleList(
            SE3TransformerLayer(self.hidden_irreps, heads, basis, radial_width) for _ in range(layers)
        )
        self.read = SteerableLinear(self.hidden_irreps, f"{readout}x0e")
        self.head = SteerableLinear(f"{readout}x0e", "1x0e")

    @classmethod
    def small(cls, elements: Sequence[int] = MD17_ELEMENTS, cutoff: float = 5.0) -> SE3Transformer:
        """Build a model of a size that trains on one CPU core."""
        return cls("32x0e+16x1o+8x2e", layers=3, heads=4, cutoff=cutoff, readout=64, elements=elements)

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
        check_atoms(numbers, positions, batch, "SE3Transformer")
        edges = self.geometry(positions, batch)
        x = self.embedding(self.elements.one_hot(numbers, positions))
        x = nn.functional.pad(x, (0, self.hidden_irreps.dim - self.scalars))
        for layer in self.layers:
            x = layer(x, edges)
        return molecule_sums(self.head(nn.functional.silu(self.read(x)))[:, 0], batch)
