"""Lie groups: SO(n), O(n), SE(n), E(n), scaling, Lorentz."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.exponential import matrix_exp
from equirelax.symmetry.group import Group, empty, haar_orthogonal, orthogonality_error, uniform


def rotation_algebra(n: int) -> Tensor:
    """Compute a basis of so(n), (n(n-1)/2, n, n), in float64.

    n = 3: rotations about x, y, z, with [A_x, A_y] = A_z. Otherwise one rotation of axis i towards axis j
    for every i < j.
    """
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    if n == 3:
        pairs = [(1, 2), (2, 0), (0, 1)]
    basis = torch.zeros(len(pairs), n, n, dtype=torch.float64)
    for index, (i, j) in enumerate(pairs):
        basis[index, j, i], basis[index, i, j] = 1.0, -1.0
    return basis


def reflection(n: int) -> Tensor:
    """Return an element of O(n) with determinant -1, (n, n).

    This is the inversion -1 for odd n, else the reflection that negates the first axis.
    """
    if n % 2:
        return -torch.eye(n, dtype=torch.float64)
    mirror = torch.eye(n, dtype=torch.float64)
    mirror[0, 0] = -1.0
    return mirror


def homogeneous(linear: Tensor, translation: Tensor | None = None, corner: float = 1.0) -> Tensor:
    """Build (..., n+1, n+1) matrices [[linear, translation], [0, corner]] from (..., n, n) and (..., n)."""
    n = linear.shape[-1]
    out = linear.new_zeros((*linear.shape[:-2], n + 1, n + 1))
    out[..., :n, :n] = linear
    if translation is not None:
        out[..., :n, n] = translation
    out[..., n, n] = corner
    return out


def _check_size(name: str, n: int, least: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < least:
        raise RepresentationError(f"{name}(n) needs a whole number n >= {least}, got {n!r}.")
    return n


class _RotationGroup(Group):
    """Base class of SO(n), O(n), SE(n) and E(n)."""

    least_n = 1
    has_reflections = False
    has_translations = False

    def __init__(self, n: int) -> None:
        self.n = _check_size(type(self).__name__, n, self.least_n)
        self.name = f"{type(self).__name__}({n})"
        self.linear_dim = n
        self.dim = n + 1 if self.has_translations else n
        self.compact = not self.has_translations
        self.connected = not self.has_reflections
        if n == 1 and self.compact:
            self.order = 2

    def spec(self) -> dict[str, Any]:
        return {"type": type(self).__name__, "n": self.n}

    def _algebra(self) -> Tensor:
        rotations = rotation_algebra(self.n)
        if not self.has_translations:
            return rotations
        n = self.n
        shifts = torch.zeros(n, n + 1, n + 1, dtype=torch.float64)
        shifts[torch.arange(n), torch.arange(n), n] = 1.0
        return torch.cat([homogeneous(rotations, corner=0.0), shifts])

    def _discrete(self) -> Tensor:
        if not self.has_reflections:
            return empty(self.dim)
        mirror = reflection(self.n).unsqueeze(0)
        return homogeneous(mirror) if self.has_translations else mirror

    def _sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        linear = haar_orthogonal(count, self.n, generator, special=not self.has_reflections)
        if not self.has_translations:
            return linear
        return homogeneous(linear, uniform((count, self.n), -1.0, 1.0, generator))

    def inverse(self, g: Tensor) -> Tensor:
        self.check_shape(g)
        if not self.has_translations:
            return g.mT
        back = g[..., : self.n, : self.n].mT
        shift = torch.cat([back, -(back @ g[..., : self.n, self.n :])], dim=-1)
        return torch.cat([shift, g[..., self.n :, :]], dim=-2)

    def _distance(self, g: Tensor) -> Tensor:
        linear = g[..., : self.n, : self.n]
        error = orthogonality_error(linear)
        if not self.has_reflections:
            error = torch.maximum(error, (torch.linalg.det(linear) - 1.0).abs())
        if self.has_translations:
            last = torch.eye(self.dim, dtype=g.dtype, device=g.device)[-1]
            error = torch.maximum(error, (g[..., -1, :] - last).abs().amax(dim=-1))
        return error


class SO(_RotationGroup, names=["SO(n)"]):
    """Rotations of R^n, n >= 2. Sampled by Haar measure."""

    least_n = 2


class O(_RotationGroup, names=["O(n)"]):  # noqa: E742
    """Rotations and reflections of R^n, n >= 1. Sampled by Haar measure.

    The discrete generator is the inversion -1 for odd n, else the reflection of the first axis.
    """

    has_reflections = True


class SE(_RotationGroup, names=["SE(n)"]):
    """Rotations and translations of R^n, n >= 2, as homogeneous (n+1, n+1) matrices.

    Not compact. Sampled with Haar rotations and translations uniform in the cube [-1, 1]^n.
    The algebra lists the rotations first, then the n translations.
    """

    least_n = 2
    has_translations = True


class E(_RotationGroup, names=["E(n)"]):
    """Rotations, reflections and translations of R^n, n >= 1, as homogeneous (n+1, n+1) matrices.

    Not compact. Sampled with Haar rotations and reflections, and translations uniform in the cube [-1, 1]^n.
    """

    has_reflections = True
    has_translations = True


class Scaling(Group, names=["Scaling"]):
    """Multiplication by a positive number: elements are (1, 1) matrices [[s]], s > 0.

    Not compact. Sampled with log s uniform in [-log 2, log 2], so s lies between 1/2 and 2.
    """

    def __init__(self) -> None:
        self.name = "Scaling"
        self.dim = self.linear_dim = 1
        self.compact = False
        self.connected = True

    def spec(self) -> dict[str, Any]:
        return {"type": "Scaling"}

    def _algebra(self) -> Tensor:
        return torch.ones(1, 1, 1, dtype=torch.float64)

    def _discrete(self) -> Tensor:
        return empty(1)

    def _sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        return uniform((count, 1, 1), -math.log(2.0), math.log(2.0), generator).exp()

    def _distance(self, g: Tensor) -> Tensor:
        s = g[..., 0, 0]
        return torch.where(s > 0, torch.zeros_like(s), torch.full_like(s, math.inf))


class Lorentz(Group, names=["Lorentz", "SO+(1,3)"]):
    """The proper orthochronous Lorentz group SO+(1,3) on (t, x, y, z), with metric diag(1, -1, -1, -1) and c = 1.

    Not compact. Sampled as (Haar rotation) (boost along z) (Haar rotation), with rapidity uniform in [-1, 1], so
    that the speed stays below tanh(1) = 0.76 of light's. The algebra lists the rotations about x, y, z, then the
    boosts along x, y, z.
    """

    def __init__(self) -> None:
        self.name = "Lorentz"
        self.dim = self.linear_dim = 4
        self.compact = False
        self.connected = True

    def spec(self) -> dict[str, Any]:
        return {"type": "Lorentz"}

    def _algebra(self) -> Tensor:
        basis = torch.zeros(6, 4, 4, dtype=torch.float64)
        basis[:3, 1:, 1:] = rotation_algebra(3)
        for axis in range(3):
            basis[3 + axis, 0, 1 + axis] = basis[3 + axis, 1 + axis, 0] = 1.0
        return basis

    def _discrete(self) -> Tensor:
        return empty(4)

    def _sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        rotations = haar_orthogonal(2 * count, 3, generator, special=True)
        lifted = torch.zeros(2 * count, 4, 4, dtype=torch.float64, device=rotations.device)
        lifted[:, 0, 0] = 1.0
        lifted[:, 1:, 1:] = rotations
        rapidity = uniform((count, 1, 1), -1.0, 1.0, generator)
        boost = matrix_exp(rapidity * self._algebra()[5].to(rapidity.device))
        return lifted[:count] @ boost @ lifted[count:]

    def _distance(self, g: Tensor) -> Tensor:
        metric = torch.diag(torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=g.dtype, device=g.device))
        error = (g.mT @ metric @ g - metric).abs().amax(dim=(-2, -1))
        # g_00 >= 1 and det = 1 pick the component of the identity out of O(1,3).
        error = torch.maximum(error, (torch.linalg.det(g) - 1.0).abs())
        return torch.maximum(error, 1.0 - g[..., 0, 0])
