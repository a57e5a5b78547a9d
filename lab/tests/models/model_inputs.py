"""Graphs, group elements and inputs for the tests of the models."""

from __future__ import annotations

import torch
from torch import Tensor


def full_graph(nodes: int) -> Tensor:
    """All ordered pairs of different nodes: (2, nodes (nodes - 1)), [source, target]."""
    pairs = [(i, j) for i in range(nodes) for j in range(nodes) if i != j]
    return torch.tensor(pairs).t()


def batch_graphs(edge_index: Tensor, nodes: int, copies: int) -> Tensor:
    """The same graph several times, one after another."""
    return torch.cat([edge_index + nodes * i for i in range(copies)], dim=1)


def irregular_graph(generator: torch.Generator) -> Tensor:
    """11 nodes, 17 edges without any order, one node without edges."""
    return torch.randint(0, 10, (2, 17), generator=generator)


def random_orthogonal(generator: torch.Generator, determinant: int) -> Tensor:
    """An element of O(3) with the given determinant, float64."""
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return q * (determinant * torch.det(q).sign())


def bodies(
    generator: torch.Generator, count: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions (n, 3), velocities (n, 3) and charges (n, 1)."""
    positions = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    velocities = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    charges = torch.randint(0, 2, (count, 1), generator=generator).double() * 2 - 1
    return positions.to(dtype), velocities.to(dtype), charges.to(dtype)
