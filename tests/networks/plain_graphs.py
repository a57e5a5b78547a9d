"""PyTorch Geometric's graph builders on plain tensors: its own need pyg-lib or torch_sparse, which are on no index."""

from __future__ import annotations

import torch
from torch import Tensor


def radius_graph(
    pos: Tensor, r: float, batch: Tensor | None = None, max_num_neighbors: int = 32, **unused: object
) -> Tensor:
    """Edges (2, edges), from source to target, between all atoms of a molecule closer than r."""
    batch = torch.zeros(len(pos), dtype=torch.long) if batch is None else batch
    near = (torch.cdist(pos.detach(), pos.detach()) < r) & (batch[:, None] == batch)
    return (near & ~torch.eye(len(pos), dtype=torch.bool)).nonzero().T


def interaction_graph(pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Edges of SchNet, and their lengths."""
    edges = radius_graph(pos, 10.0, batch)
    return edges, (pos[edges[0]] - pos[edges[1]]).norm(dim=1)


def triplets(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, ...]:
    """Of edges j -> i and all k -> j with k different from i: i, j, and the triplets' i, j, k and edges kj, ji."""
    source, target = edge_index[0], edge_index[1]
    pairs = [
        (kj, ji)
        for ji in range(len(source))
        for kj in range(len(source))
        if target[kj] == source[ji] and source[kj] != target[ji]
    ]
    kj, ji = torch.tensor(pairs).T
    return target, source, target[ji], source[ji], source[kj], kj, ji


def molecules(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, positions and molecules of five atoms in two molecules, away from the origin."""
    generator = torch.Generator().manual_seed(4)
    where = 1.5 * torch.randn(5, 3, generator=generator, dtype=torch.float64) + torch.tensor([1.0, -2.0, 0.5])
    return torch.tensor([6, 1, 8, 1, 7]), where.to(dtype), torch.tensor([0, 0, 0, 1, 1])
