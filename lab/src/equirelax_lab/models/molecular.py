"""Parts of attention networks on molecules: the geometry of edges, attention that vanishes smoothly, sums over molecules."""

from __future__ import annotations

from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from equirelax.errors import RepresentationError
from equirelax_lab.models.fast.depthwise import DepthwiseProduct
from equirelax_lab.models.radial import GaussianBasis, pairs
from equirelax_lab.models.stack import sum_rows

MD17_ELEMENTS = (1, 6, 7, 8)


class EdgeGeometry(NamedTuple):
    """The edge data that all layers read: source, target, envelope (e,), radial basis (basis, e), couplings of the features (see
    `depthwise`), spherical harmonics (harmonics, e)."""

    source: Tensor
    target: Tensor
    envelope: Tensor
    basis: Tensor
    couplings: Tensor
    harmonics: Tensor


class Geometry(nn.Module):
    """Computes the edges and their geometry from positions; it has no parameters.

    Args:
        hidden: irreps of the features, whose couplings are computed once for all layers.
        cutoff: cutoff radius, in the unit of the positions.
        basis: number of radial basis functions, at least 2.
        name: The model's name, for messages.
    """

    def __init__(self, hidden: o3.Irreps, cutoff: float, basis: int, name: str) -> None:
        super().__init__()
        self.cutoff, self.name = cutoff, name
        self.harmonics = o3.Irreps.spherical_harmonics(hidden.lmax)
        self.degrees = list(range(hidden.lmax + 1))
        self.basis = GaussianBasis(basis, cutoff)
        self.product = DepthwiseProduct(hidden, self.harmonics, hidden)

    def forward(self, positions: Tensor, batch: Tensor) -> EdgeGeometry:
        """positions (n, 3), batch (n,) long."""
        found = pairs(positions, batch, self.cutoff, self.name)
        harmonics = o3.spherical_harmonics(
            self.degrees, found.directions.t(), normalize=False, normalization="component"
        )
        columns = harmonics.t().contiguous()
        return EdgeGeometry(
            found.source,
            found.target,
            found.envelope,
            self.basis(found.distances),
            self.product.couplings(columns),
            columns,
        )


def check_atoms(numbers: Tensor, positions: Tensor, batch: Tensor, name: str) -> None:
    """Check the inputs of a network of molecules.

    Args:
        numbers, positions, batch: (n,) long, (n, 3) floating and (n,) long.
        name: The model's name, for messages.

    Raises:
        RepresentationError: a shape or dtype is wrong.
    """
    atoms = positions.shape[:1]
    fits = positions.shape == (*atoms, 3) and numbers.shape == batch.shape == atoms
    if (
        not fits
        or not positions.is_floating_point()
        or numbers.dtype != torch.long
        or batch.dtype != torch.long
    ):
        given = ", ".join(f"{tuple(t.shape)} of {t.dtype}" for t in (numbers, positions, batch))
        raise RepresentationError(
            f"{name}: expected atomic numbers (n,) long, positions (n, 3) floating and molecules (n,) long, got {given}"
        )


def smooth_softmax(z: Tensor, edges: EdgeGeometry, nodes: int) -> Tensor:
    """Attention of every edge, f_ij exp(z_ij) / (1 + sum_k f_ik exp(z_ik)) with the envelope f: logits (heads, e) -> (heads, e).

    An ordinary softmax would jump where a neighbour enters the cutoff.
    """
    # The result does not depend on what is subtracted, so no gradient is needed.
    index = edges.target.expand(z.shape[0], -1)
    largest = z.new_zeros(z.shape[0], nodes).scatter_reduce(1, index, z.detach(), "amax")
    strength = (z - largest.index_select(1, edges.target)).exp() * edges.envelope
    total = (-largest).exp() + sum_rows(strength, edges.target, nodes)
    return strength / total.index_select(1, edges.target)


def molecule_sums(atoms: Tensor, batch: Tensor) -> Tensor:
    """Sum (n,) over the atoms of every molecule: (molecules,), where `molecules` is the largest number in `batch` plus one."""
    molecules = 0 if batch.shape[0] == 0 else int(batch.max()) + 1
    return atoms.new_zeros(molecules).index_add(0, batch, atoms)


def check_heads(name: str, hidden: o3.Irreps, heads: int) -> None:
    """Check that irreps are 0e followed by others, each in one slot, with multiplicities that the heads divide.

    Raises:
        RepresentationError: the irreps do not fit; the message says why.
    """
    kinds = [ir for _, ir in hidden]
    if len(set(kinds)) < len(kinds) or o3.Irrep("0o") in kinds or not kinds or kinds[0] != o3.Irrep("0e"):
        raise RepresentationError(
            f"{name}: expected hidden irreps of 0e followed by irreps of l > 0, each once, got {hidden}; sort and simplify "
            "them, and leave out 0o"
        )
    wrong = [str(mul_ir) for mul_ir in hidden if mul_ir.mul % heads]
    if wrong:
        raise RepresentationError(
            f"{name}: the multiplicities of {', '.join(wrong)} in {hidden} are not multiples of {heads} heads"
        )
