"""Products of a block's generators or discrete elements with wide matrices, for all copies at once.

M_1..M_c are the (d, d) matrices of one block, u = 1..mul its copies, and entry i of copy u has index u d + i. These products
run in every training step, so each is one batched product without a Python loop over copies or matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from equirelax.symmetry.blocks import Block, Kind

# Small matrices are slow to multiply: copies are grouped until a tile has about this many entries per side.
TILE = 24


def _tile(mul: int, dim: int) -> int:
    """Choose the largest number of copies that divides `mul` and keeps a tile at most TILE wide (at least 1)."""
    return max((t for t in range(1, min(mul, TILE // dim) + 1) if mul % t == 0), default=1)


def columns(block: Block, mul: int, x: Tensor, kind: Kind) -> Tensor:
    """Compute (1 (x) M_c) x for x (mul d, m): (c, mul d, m)."""
    d, m = block.dim, x.shape[-1]
    if d == 1:
        return block.stacked(kind, x.dtype, x.device).unsqueeze(-1) * x
    stack = block.stacked(kind, x.dtype, x.device)
    count = stack.shape[0] // d
    product = torch.matmul(stack, x.reshape(mul, d, m))  # (mul, c d, m)
    return product.reshape(mul, count, d, m).transpose(0, 1).reshape(count, mul * d, m)


def columns_adjoint(block: Block, mul: int, y: Tensor, kind: Kind) -> Tensor:
    """Compute sum_c (1 (x) M_c)^T y_c for y (c, mul d, m): (mul d, m)."""
    count, d, m = y.shape[0], block.dim, y.shape[-1]
    stack = block.stacked(kind, y.dtype, y.device)
    if d == 1:
        return (stack.unsqueeze(-1) * y).sum(dim=0)
    gathered = y.reshape(count, mul, d, m).transpose(0, 1).reshape(mul, count * d, m)
    return torch.matmul(stack.mT, gathered).reshape(mul * d, m)


def rows(block: Block, mul: int, x: Tensor, kind: Kind, *, transposed: bool) -> Tensor:
    """Compute x (1 (x) M_c), or with M_c^T if `transposed`, for x (m, mul d): (c, m, mul d)."""
    d = block.dim
    if d == 1:
        return block.stacked(kind, x.dtype, x.device).unsqueeze(-1) * x
    tile = _tile(mul, d)
    matrices = block.tiled(kind, tile, x.dtype, x.device)
    product = torch.matmul(x.reshape(len(x) * mul // tile, tile * d), matrices.mT if transposed else matrices)
    return product.reshape(len(matrices), *x.shape)


def rows_adjoint(block: Block, mul: int, y: Tensor, kind: Kind) -> Tensor:
    """Compute sum_c y_c (1 (x) M_c)^T for y (c, m, mul d): (m, mul d)."""
    d = block.dim
    if d == 1:
        return (block.stacked(kind, y.dtype, y.device).unsqueeze(-1) * y).sum(dim=0)
    tile = _tile(mul, d)
    matrices = block.tiled(kind, tile, y.dtype, y.device)
    product = torch.matmul(y.reshape(len(y), y.shape[1] * mul // tile, tile * d), matrices.mT)
    return product.sum(dim=0).reshape(y.shape[1:])
