"""Linear maps that commute with a group: bases of them, and orthogonal projection of any map onto them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.block import Block
from equirelax.symmetry.group import constants
from equirelax.symmetry.representation import Representation

# Singular values below this share of the largest count as 0.
RANK_TOLERANCE = 1e-8


def hom_basis(block_in: Block, block_out: Block) -> Tensor:
    """Orthonormal basis (Frobenius product) of the equivariant maps between two blocks: (b, d_out, d_in) in
    float64.

    The null space of W -> drho_out(A_i) W - W drho_in(A_i), and of W -> rho_out(g_j) W - W rho_in(g_j) for
    the discrete generators g_j. This holds for any group, compact or not, and needs no invariant inner
    product.

    Raises:
        RepresentationError: the blocks belong to different groups, or one is affine.
    """
    if block_in.group != block_out.group:
        raise RepresentationError(
            f"No maps commute with two groups: {block_in!r} belongs to {block_in.group.name}, {block_out!r} "
            f"to {block_out.group.name}."
        )
    if not (block_in.linear and block_out.linear):
        raise RepresentationError(
            f"Equivariant linear maps from {block_in!r} to {block_out!r} are not defined block by block, "
            "since translations act by "
            "adding. Use Representation.linear_part()."
        )
    return _hom_basis(block_in, block_out).clone()


@lru_cache(maxsize=1024)
def _hom_basis(block_in: Block, block_out: Block) -> Tensor:
    with constants():
        known = block_in.known_hom(block_out)
        if known is not None:
            return known
        return _null_space(block_in, block_out)


def _null_space(block_in: Block, block_out: Block) -> Tensor:
    d_in, d_out = block_in.dim, block_out.dim
    size = d_in * d_out
    eye_in, eye_out = torch.eye(d_in, dtype=torch.float64), torch.eye(d_out, dtype=torch.float64)
    pairs = [
        *zip(block_in.generators(), block_out.generators(), strict=True),
        *zip(block_in.discrete(), block_out.discrete(), strict=True),
    ]
    # Row-major vec: vec(B W) = (B (x) 1) vec(W), vec(W A) = (1 (x) A^T) vec(W).
    reduced = torch.zeros(0, size, dtype=torch.float64)
    for a, b in pairs:
        constraint = torch.kron(b, eye_in) - torch.kron(eye_out, a.mT.contiguous())
        # Only R of a QR is kept: it has the same null space and never more than `size` rows.
        reduced = torch.linalg.qr(torch.cat([reduced, constraint]), mode="r")[1]
    if not len(reduced):
        return torch.eye(size, dtype=torch.float64).reshape(size, d_out, d_in)
    _, singular, vh = torch.linalg.svd(reduced)
    scale = max((float(m.abs().max()) for pair in pairs for m in pair), default=1.0)
    rank = int((singular > RANK_TOLERANCE * max(float(singular.max()), scale)).sum())
    return vh[rank:].reshape(-1, d_out, d_in)


def equivariant_projection(weight: Tensor, in_rep: Representation, out_rep: Representation) -> Tensor:
    """The equivariant map nearest to W in the Frobenius norm, for W (out_rep.dim, in_rep.dim): the same
    shape.

    Block by block: W between copies u of an input block and v of an output block is replaced by sum_b <W_vu,
    Q_b> Q_b with Q = hom_basis(...). Differentiable in W; the result has W's dtype and device.

    Raises:
        RepresentationError: W's shape or the groups do not fit, or a representation is affine.
    """
    if in_rep.group != out_rep.group:
        raise RepresentationError(
            f"The representations must be of one group, got {in_rep} of {in_rep.group.name} and {out_rep} of "
            f"{out_rep.group.name}."
        )
    if weight.dim() != 2 or tuple(weight.shape) != (out_rep.dim, in_rep.dim):
        raise RepresentationError(
            f"A map from {in_rep} to {out_rep} has shape ({out_rep.dim}, {in_rep.dim}), got "
            f"{tuple(weight.shape)}."
        )
    bands = []
    for (m_out, b_out), rows in zip(out_rep.blocks, out_rep.slices(), strict=True):
        parts = []
        for (m_in, b_in), cols in zip(in_rep.blocks, in_rep.slices(), strict=True):
            hom_basis_checked = (
                hom_basis(b_in, b_out) if not (b_in.linear and b_out.linear) else _hom_basis(b_in, b_out)
            )
            basis = hom_basis_checked.to(dtype=weight.dtype, device=weight.device)
            tile = weight[rows, cols]
            if len(basis):
                tile = tile.reshape(m_out, b_out.dim, m_in, b_in.dim)
                coefficients = torch.einsum("voui,boi->vub", tile, basis)
                tile = torch.einsum("vub,boi->voui", coefficients, basis).reshape(
                    m_out * b_out.dim, m_in * b_in.dim
                )
            else:
                tile = torch.zeros_like(tile)
            parts.append(tile)
        bands.append(torch.cat(parts, dim=1) if parts else weight[rows])
    return torch.cat(bands, dim=0) if bands else weight.clone()
