"""rho of every element from rho of the generators alone: finite groups, SO(2), O(2), SO(3), O(3)."""

from __future__ import annotations

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.exponential import matrix_exp
from equirelax.symmetry.group import ELEMENT_LIMIT, Group, closure
from equirelax.symmetry.lie import SO, O


def is_rotations(group: Group) -> bool:
    """Whether `exponentials` reaches every element of the group from its generators."""
    return isinstance(group, SO | O) and group.n in (2, 3)


def element_table(group: Group, discrete: Tensor) -> Tensor:
    """rho of all elements of a finite group in the order of `group.elements()`: (order, d, d) in float64.

    Args:
        discrete: rho of `group.discrete()`, (c, d, d).

    Raises:
        RepresentationError: the matrices obey other relations than the group's generators.
    """
    elements = group.elements()
    dim, size = group.dim, discrete.shape[-1]
    pairs = torch.zeros(len(discrete), dim + size, dim + size, dtype=torch.float64)
    pairs[:, :dim, :dim], pairs[:, dim:, dim:] = group.discrete(), discrete
    # Products of the pairs (g, rho(g)) are as many as the elements exactly if rho is a representation.
    reached = closure(pairs, min(2 * len(elements), ELEMENT_LIMIT)) if len(pairs) else None
    if reached is None:
        if len(elements) == 1:
            return torch.eye(size, dtype=torch.float64)[None]
        reached = pairs
    if len(reached) != len(elements):
        raise RepresentationError(
            f"matrices of size {size} for the {len(discrete)} generators of {group.name} give more products than the "
            f"group's {len(elements)} elements: they obey other relations, so they are no representation of it"
        )
    order = torch.cdist(elements.flatten(1), reached[:, :dim, :dim].flatten(1)).argmin(dim=1)
    return reached[order, dim:, dim:]


def looked_up(group: Group, table: Tensor, g: Tensor) -> Tensor:
    """rho(g), (..., d, d), for elements (..., n, n) of a finite group, from `element_table`."""
    group.check_shape(g)
    elements = group.elements(g.dtype, g.device).flatten(1)
    index = torch.cdist(g.flatten(-2).reshape(-1, elements.shape[1]), elements).argmin(dim=-1)
    return table[index].reshape(*g.shape[:-2], *table.shape[1:])


def exponentials(group: Group, generators: Tensor, discrete: Tensor, g: Tensor) -> Tensor:
    """rho(g), (..., d, d) in the dtype of g, for SO(n) and O(n) with n = 2, 3.

    A rotation exp(sum c_i A_i) acts by exp(sum c_i drho(A_i)); a reflection is the discrete generator times a rotation.

    Args:
        generators: drho(A_i) for the basis `group.algebra()`, (k, d, d).
        discrete: rho of `group.discrete()`, (c, d, d).
        g: elements (..., n, n).
    """
    group.check_shape(g)
    rotation = g.to(torch.float64)
    generators, discrete = generators.to(g.device), discrete.to(g.device)
    flipped = (torch.linalg.det(rotation) < 0)[..., None, None]
    if len(discrete):
        rotation = torch.where(flipped, group.discrete(device=g.device)[0].mT @ rotation, rotation)
    turns = matrix_exp(torch.einsum("...k,kij->...ij", _coordinates(group, rotation), generators))
    if len(discrete):
        turns = torch.where(flipped, discrete[0] @ turns, turns)
    return turns.to(g.dtype)


def _coordinates(group: Group, rotation: Tensor) -> Tensor:
    """c (..., k) with R = exp(sum c_i A_i), for rotations (..., n, n) of the plane or of space."""
    if group.linear_dim == 2:
        return torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])[..., None] / group.algebra()[0, 1, 0]
    from equirelax.symmetry.irreps import rotation_vectors  # it imports representations, which import this

    return rotation_vectors(rotation)
