"""Blocks: actions of a group on one small vector. Representations are direct sums of blocks."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.files import did_you_mean
from equirelax.symmetry.group import Group, constants, determinant_sign, widened

_TYPES: dict[str, type[Block]] = {}
Kind = Literal["generators", "discrete"]


class Block(ABC):
    """An action of `group` on vectors with `dim` entries.

    A linear block acts by x -> rho(g) x, an affine one (positions) by x -> rho(g) x + offset(g). Its constants are
    computed once in float64 and cached for every dtype and device; pickles and copies leave the cache out.

    Attributes:
        group: the group that acts.
        dim: d, the length of a vector.
        name: the name in tables and messages, such as `vector` or `1o`.
        linear: whether the action has no offset.
        trivial: whether every element leaves every vector unchanged.
        names_group: whether `name` alone implies the group that acts, as `1o` does for O(3).
    """

    group: Group
    dim: int
    name: str
    linear: bool = True
    trivial: bool = False
    names_group: bool = False

    def __init_subclass__(cls) -> None:
        _TYPES[cls.__name__] = cls

    def __init__(self, group: Group, dim: int, name: str) -> None:
        self.group = group
        self.dim = dim
        self.name = name
        self._cache: dict[tuple[Any, ...], Tensor] = {}

    @abstractmethod
    def matrix(self, g: Tensor) -> Tensor:
        """Compute rho(g), (..., d, d), for elements g (..., n, n); for an affine block its linear part."""

    @abstractmethod
    def _generators(self) -> Tensor:
        """Compute drho(A_i), (k, d, d), in float64."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments, without the group, as plain Python values."""

    @classmethod
    def from_arguments(cls, group: Group, arguments: dict[str, Any]) -> Block:
        """Build the block of `group` that `arguments()` describes."""
        return cls(group, **arguments)

    def _discrete(self) -> Tensor:
        return self.matrix(self.group.discrete())

    def offset(self, g: Tensor) -> Tensor | None:
        """Compute the offset that is added to rho(g) x, (..., d); None for a linear block."""
        return None

    def generators(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor:
        """Return drho(A_i) for the basis A of the group's Lie algebra, (k, d, d). It is cached: do not write into it."""
        return self._constant("generators", self._generators, dtype, device)

    def discrete(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor:
        """Return rho of the group's discrete generators, (c, d, d). It is cached: do not write into it."""
        return self._constant("discrete", self._discrete, dtype, device)

    def generator_offsets(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor | None:
        """Return the derivative of `offset` along the basis, (k, d); None for a linear block."""
        return None

    def known_hom(self, other: Block) -> Tensor | None:
        """Return an orthonormal basis (b, d_other, d) of the equivariant maps to `other`; None if it must be computed."""
        return None

    def stacked(self, kind: Kind, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the matrices of `kind` stacked vertically, (count d, d). It is cached: do not write into it."""
        return self._constant(
            f"{kind} stacked", lambda: self._matrices(kind).reshape(-1, self.dim), dtype, device
        )

    def tiled(self, kind: Kind, tile: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return `tile` copies of each matrix of `kind` on a diagonal, (count, tile d, tile d). It is also cached."""

        def build() -> Tensor:
            matrices = self._matrices(kind)
            eye = torch.eye(tile, dtype=matrices.dtype)
            wide = torch.einsum("uv,kij->kuivj", eye, matrices)
            return wide.reshape(len(matrices), tile * self.dim, tile * self.dim)

        return self._constant(f"{kind} tiled {tile}", build, dtype, device)

    def _matrices(self, kind: Kind) -> Tensor:
        return self.generators() if kind == "generators" else self.discrete()

    def _constant(
        self,
        name: str,
        build: Callable[[], Tensor],
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        key = (name, dtype, torch.device("cpu") if device is None else torch.device(device))
        if key not in self._cache:
            with constants():
                self._cache[key] = build().to(dtype=dtype, device=device).contiguous()
        return self._cache[key]

    def spec(self) -> dict[str, Any]:
        """Return plain Python values, without the group, from which `block_from_spec` rebuilds the block."""
        return {"type": type(self).__name__, **self.arguments()}

    @cached_property
    def _key(self) -> str:
        return json.dumps(self.spec(), sort_keys=True)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Block) and self.group == other.group and self._key == other._key

    def __hash__(self) -> int:
        return hash((self.group, self._key))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    def __repr__(self) -> str:
        return f"{self.name}[{self.group.name}]"


def block_from_spec(group: Group, spec: dict[str, Any]) -> Block:
    """Build the block of `group` that `Block.spec()` describes.

    Raises:
        RepresentationError: the type is unknown or the arguments do not fit.
    """
    name, arguments = spec.get("type"), {key: value for key, value in spec.items() if key != "type"}
    if name not in _TYPES:
        known = sorted(_TYPES)
        raise RepresentationError(
            f"Unknown block {name!r}.{did_you_mean(str(name), known)} Known: {', '.join(known)}."
        )
    try:
        return _TYPES[name].from_arguments(group, arguments)
    except TypeError as error:
        raise RepresentationError(f"The spec {spec!r} does not fit the block {name!r}: {error}") from error


class Trivial(Block):
    """A number that every element leaves unchanged."""

    trivial = True

    def __init__(self, group: Group) -> None:
        super().__init__(group, 1, "trivial")

    def matrix(self, g: Tensor) -> Tensor:
        self.group.check_shape(g)
        return torch.ones_like(g[..., :1, :1])

    def _generators(self) -> Tensor:
        return torch.zeros(self.group.algebra_dim, 1, 1, dtype=torch.float64)

    def arguments(self) -> dict[str, Any]:
        return {}


class Vector(Block):
    """The defining representation; for SE(n) and E(n) its linear part, so that translations leave a vector unchanged."""

    def __init__(self, group: Group) -> None:
        super().__init__(group, group.linear_dim, "vector")

    def matrix(self, g: Tensor) -> Tensor:
        return self.group.linear_part(g)

    def _generators(self) -> Tensor:
        return self.group.linear_part(self.group.algebra())

    def arguments(self) -> dict[str, Any]:
        return {}


class Positions(Block):
    """Points in space under SE(n) or E(n): x -> R x + t."""

    linear = False

    def __init__(self, group: Group) -> None:
        if group.dim == group.linear_dim:
            raise RepresentationError(
                f"{group.name} has no translations, so its positions are vectors: use positions(group), "
                "which gives them."
            )
        super().__init__(group, group.linear_dim, "position")

    def matrix(self, g: Tensor) -> Tensor:
        return self.group.linear_part(g)

    def _generators(self) -> Tensor:
        return self.group.linear_part(self.group.algebra())

    def _shifts(self) -> Tensor:
        shifts = self.group.translation_part(self.group.algebra())
        if shifts is None:  # the constructor has refused such a group
            raise RepresentationError(f"{self.group.name} has no translations.")
        return shifts

    def offset(self, g: Tensor) -> Tensor | None:
        return self.group.translation_part(g)

    def generator_offsets(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor | None:
        return self._constant("offsets", self._shifts, dtype, device)

    def arguments(self) -> dict[str, Any]:
        return {}


class Sign(Block):
    """A number multiplied by the sign of the determinant, such as a pseudoscalar or the parity of a permutation."""

    def __init__(self, group: Group) -> None:
        super().__init__(group, 1, "sign")

    def matrix(self, g: Tensor) -> Tensor:
        return determinant_sign(self.group.linear_part(g))

    def _generators(self) -> Tensor:
        return torch.zeros(self.group.algebra_dim, 1, 1, dtype=torch.float64)

    def arguments(self) -> dict[str, Any]:
        return {}


class Pseudovector(Block):
    """det(R) R for groups of rotations and reflections of R^3, such as for angular momenta and magnetic fields."""

    def __init__(self, group: Group) -> None:
        if group.linear_dim != 3:
            raise RepresentationError(
                f"A pseudovector needs a group that acts on R^3, but {group.name} acts on "
                f"R^{group.linear_dim}."
            )
        super().__init__(group, 3, "pseudovector")

    def matrix(self, g: Tensor) -> Tensor:
        linear = self.group.linear_part(g)
        return determinant_sign(linear) * linear

    def _generators(self) -> Tensor:
        return self.group.linear_part(self.group.algebra())

    def arguments(self) -> dict[str, Any]:
        return {}


class Regular(Block):
    """The regular representation of a finite group: e_h goes to e_gh, in the order of `group.elements()`."""

    def __init__(self, group: Group) -> None:
        if group.order is None:
            raise RepresentationError(
                f"Only a finite group has a regular representation with finitely many entries; {group.name} "
                "is infinite."
            )
        super().__init__(group, group.order, "regular")

    def matrix(self, g: Tensor) -> Tensor:
        self.group.check_shape(g)
        wide = widened(g)
        elements = self.group.elements(wide.dtype, g.device)
        products = (wide.unsqueeze(-3) @ elements).flatten(-2)  # (..., order, n n): g h for every h
        image = torch.cdist(products, elements.flatten(-2)).argmin(dim=-1)
        return torch.nn.functional.one_hot(image, self.dim).to(g.dtype).mT

    def _generators(self) -> Tensor:
        return torch.zeros(0, self.dim, self.dim, dtype=torch.float64)

    def arguments(self) -> dict[str, Any]:
        return {}
