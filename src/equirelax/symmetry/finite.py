"""Finite groups: cyclic, dihedral, symmetric."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.group import ELEMENT_LIMIT, Group, draw_device, empty


def rotation(angle: Tensor) -> Tensor:
    """Build counter-clockwise rotations of the plane by `angle` (...), in radians: (..., 2, 2)."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], dim=-1), torch.stack([s, c], dim=-1)], dim=-2)


class _FiniteGroup(Group):
    compact = True
    connected = False

    def __init__(self, n: int, letter: str, dim: int, order: int) -> None:
        self.n = n
        self.name = f"{letter}{n}"
        self.dim = self.linear_dim = dim
        self.order = order

    def spec(self) -> dict[str, Any]:
        return {"type": type(self).__name__, "n": self.n}

    def _algebra(self) -> Tensor:
        return empty(self.dim)

    def _sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        elements = self._elements()
        index = torch.randint(len(elements), (count,), generator=generator, device=draw_device(generator))
        return elements.to(index.device)[index]

    def inverse(self, g: Tensor) -> Tensor:
        self.check_shape(g)
        return g.mT  # rotations, reflections and permutations are orthogonal

    def _distance(self, g: Tensor) -> Tensor:
        elements = self._elements().to(g.device)
        return (g.unsqueeze(-3) - elements).abs().amax(dim=(-2, -1)).amin(dim=-1)


def _check_n(name: str, n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise RepresentationError(f"{name}(n) needs a whole number n >= 1, got {n!r}.")
    return n


class Cyclic(_FiniteGroup, names=["C(n)"]):
    """C_n, rotations of the plane by multiples of 2 pi / n: (2, 2) matrices.

    Elements are in the order 1, r, r^2, ...
    """

    def __init__(self, n: int) -> None:
        super().__init__(_check_n("Cyclic", n), "C", 2, n)

    def _elements(self) -> Tensor:
        return rotation(2 * math.pi / self.n * torch.arange(self.n, dtype=torch.float64))

    def _discrete(self) -> Tensor:
        return self._elements()[1:2]


class Dihedral(_FiniteGroup, names=["D(n)"]):
    """D_n, the 2n symmetries of a regular n-gon: (2, 2) matrices.

    Elements are in the order 1, r, ..., r^(n-1), s, r s, ..., where s = diag(1, -1) reflects y. Generators: r, s.
    """

    def __init__(self, n: int) -> None:
        super().__init__(_check_n("Dihedral", n), "D", 2, 2 * n)

    def _elements(self) -> Tensor:
        turns = rotation(2 * math.pi / self.n * torch.arange(self.n, dtype=torch.float64))
        return torch.cat([turns, turns @ torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))])

    def _discrete(self) -> Tensor:
        elements = self._elements()
        return elements[[self.n]] if self.n == 1 else elements[[1, self.n]]


class Symmetric(_FiniteGroup, names=["S(n)"]):
    """S_n, permutations of n coordinates as (n, n) permutation matrices: (P x)_{p(i)} = x_i.

    Generators: the transposition of the first two, and the cycle of all n.
    """

    def __init__(self, n: int) -> None:
        _check_n("Symmetric", n)
        super().__init__(n, "S", n, math.factorial(n))

    def _matrices(self, images: Tensor) -> Tensor:
        """Build permutation matrices (..., n, n) of `images` (..., n): column i has its 1 in row images[i]."""
        return torch.nn.functional.one_hot(images, self.n).to(torch.float64).mT

    def _elements(self) -> Tensor:
        if self.order is None or self.order > ELEMENT_LIMIT:
            raise RepresentationError(
                f"{self.name} has {self.order} elements, too many to list (limit {ELEMENT_LIMIT})."
            )
        return self._matrices(torch.tensor(list(itertools.permutations(range(self.n)))))

    def _discrete(self) -> Tensor:
        if self.n == 1:
            return empty(1)
        swap = torch.tensor([1, 0, *range(2, self.n)])
        cycle = torch.tensor([*range(1, self.n), 0])
        return self._matrices(swap.unsqueeze(0) if self.n == 2 else torch.stack([swap, cycle]))

    def _sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        # The ranks of independent uniform numbers are a uniform permutation, so the n! elements need not be listed.
        keys = torch.rand(
            count, self.n, generator=generator, dtype=torch.float64, device=draw_device(generator)
        )
        return self._matrices(keys.argsort(dim=-1))

    def _distance(self, g: Tensor) -> Tensor:
        rounded = (g > 0.5).to(g.dtype)
        error = (g - rounded).abs().amax(dim=(-2, -1))
        for axis in (-2, -1):
            error = torch.maximum(error, (rounded.sum(dim=axis) - 1.0).abs().amax(dim=-1))
        return error
