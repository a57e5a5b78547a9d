"""Spherical features of degrees 1 and 2 on one axis, as in ViSNet and GotenNet, without e3nn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from equirelax.symmetry import O, On, Representation, cartesian, vector


def spherical(degrees: Sequence[int]) -> On:
    """The action on features (..., components, channels) of these degrees, each of which is 1 or 2.

    Components of degree 1 are x, y, z; those of degree 2 are sqrt(3) xz, sqrt(3) xy, y^2 - (x^2 + z^2) / 2, sqrt(3) yz,
    sqrt(3) (z^2 - x^2) / 2.
    """
    first, *others = (vector(O(3)) if degree == 1 else _second() for degree in degrees)
    return On(sum(others, first), -2)


def _second() -> Representation:
    """Degree 2: inner products of x x^T with five orthogonal symmetric traceless matrices of equal norm."""
    basis = torch.zeros(5, 3, 3, dtype=torch.float64)
    for k, i, j in ((0, 0, 2), (1, 0, 1), (3, 1, 2)):
        basis[k, i, j] = basis[k, j, i] = math.sqrt(3.0) / 2
    basis[2] = torch.diag(torch.tensor([-0.5, 1.0, -0.5], dtype=torch.float64))
    basis[4] = torch.diag(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)) * math.sqrt(3.0) / 2
    return cartesian(O(3), basis)
