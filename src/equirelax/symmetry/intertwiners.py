"""Linear maps that commute with a group: bases of them, and the orthogonal projection onto them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.blocks import Block
from equirelax.symmetry.group import constants
from equirelax.symmetry.representation import Representation

# Singular values below this fraction of the largest count as 0.
RANK_TOLERANCE = 1e-8


def hom_basis(block_in: Block, block_out: Block) -> Tensor:
    """Compute an orthonormal (Frobenius) basis of the equivariant maps between two blocks, (b, d_out, d_in), float64.

    It spans the null space of W -> drho_out(A_i) W - W drho_in(A_i) and of W -> rho_out(g_j) W - W rho_in(g_j) for the
    discrete generators g_j. This holds for any group, compact or not, and needs no invariant inner product.

    Raises:
        RepresentationError: the blocks belong to different groups, or one is affine.
    """
    return _hom_basis(block_in, block_out).clone()


@lru_cache(maxsize=1024)
def _hom_basis(block_in: Block, block_out: Block) -> Tensor:
    if block_in.group != block_out.group:
        raise RepresentationError(
            f"No maps commute with two groups: {block_in!r} belongs to {block_in.group.name}, {block_out!r} "
            f"to {block_out.group.name}."
        )
    if not (block_in.linear and block_out.linear):
        raise RepresentationError(
            f"Equivariant linear maps from {block_in!r} to {block_out!r} are not defined block by block, "
            "since translations act by adding. Use Representation.linear_part()."
        )
    with constants():
        known = block_in.known_hom(block_out)
        return _null_space(block_in, block_out) if known is None else known


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
    """Project W (..., out_rep.dim, in_rep.dim) to the nearest equivariant map in the Frobenius norm, of the same shape.

    Block by block: W between copy u of an input block and copy v of an output block is replaced by
    sum_b <W_vu, Q_b> Q_b with Q = hom_basis(...). Differentiable in W; the result has W's dtype and device.

    Raises:
        RepresentationError: W's shape or the groups do not fit, or a representation is affine.
    """
    if in_rep.group != out_rep.group:
        raise RepresentationError(
            f"The representations must be of one group, got {in_rep} of {in_rep.group.name} and {out_rep} of "
            f"{out_rep.group.name}."
        )
    if tuple(weight.shape[-2:]) != (out_rep.dim, in_rep.dim):
        raise RepresentationError(
            f"A map from {in_rep} to {out_rep} has shape ({out_rep.dim}, {in_rep.dim}), got "
            f"{tuple(weight.shape)}."
        )
    bands = []
    for (m_out, b_out), rows in zip(out_rep.blocks, out_rep.slices(), strict=True):
        tiles = [
            _project_tile(weight[..., rows, columns], _hom_basis(b_in, b_out), m_out, m_in)
            for (m_in, b_in), columns in zip(in_rep.blocks, in_rep.slices(), strict=True)
        ]
        bands.append(torch.cat(tiles, dim=-1) if tiles else weight[..., rows, :])
    return torch.cat(bands, dim=-2) if bands else weight.clone()


def _project_tile(tile: Tensor, basis: Tensor, m_out: int, m_in: int) -> Tensor:
    """Project (..., m_out d_out, m_in d_in) onto the span of `basis` (b, d_out, d_in), copy by copy."""
    if not len(basis):
        return torch.zeros_like(tile)
    basis = basis.to(dtype=tile.dtype, device=tile.device)
    copies = tile.reshape(*tile.shape[:-2], m_out, basis.shape[1], m_in, basis.shape[2])
    coefficients = torch.einsum("...voui,boi->...vub", copies, basis)
    return torch.einsum("...vub,boi->...voui", coefficients, basis).reshape(tile.shape)
