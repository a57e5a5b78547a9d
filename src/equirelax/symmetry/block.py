"""What a block is: how a group acts on one small vector. Representations are direct sums of blocks."""

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
from equirelax.symmetry.group import Group, constants

_TYPES: dict[str, type[Block]] = {}
Kind = Literal["generators", "discrete"]


class Block(ABC):
    """An action of `group` on vectors with `dim` entries.

    A linear block acts by x -> rho(g) x; an affine one (positions) by x -> rho(g) x + offset(g).
    Constants are made once in float64 and kept per dtype and device; pickles and copies leave them out.

    Attributes:
        group: the group that acts.
        dim: d, the length of a vector.
        name: for tables and messages, such as `vector` or `1o`.
        linear: False where the action has an offset.
        trivial: whether no element moves any vector.
        names_group: whether `name` alone says which group acts, as `1o` does for O(3).
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
        """rho(g), (..., d, d), for elements g (..., n, n). Of an affine block: its linear part."""

    @abstractmethod
    def _generators(self) -> Tensor:
        """drho(A_i), (k, d, d) in float64."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What, beside the group, the block is made of, in plain Python."""

    @classmethod
    def from_arguments(cls, group: Group, arguments: dict[str, Any]) -> Block:
        """The block that `arguments()` described."""
        return cls(group, **arguments)

    def _discrete(self) -> Tensor:
        return self.matrix(self.group.discrete())

    def offset(self, g: Tensor) -> Tensor | None:
        """What is added after rho(g): (..., d), or None for a linear block."""
        return None

    def generators(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor:
        """drho(A_i) for the basis A of the group's Lie algebra, (k, d, d). Do not write into it."""
        return self._constant("generators", self._generators, dtype, device)

    def discrete(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor:
        """rho of the group's discrete generators, (c, d, d). Do not write into it."""
        return self._constant("discrete", self._discrete, dtype, device)

    def generator_offsets(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor | None:
        """Derivative of `offset` along the basis, (k, d); None for a linear block."""
        return None

    def known_hom(self, other: Block) -> Tensor | None:
        """Orthonormal basis (b, d_other, d) of the equivariant maps to `other`, or None if not known."""
        return None

    def stacked(self, kind: Kind, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The matrices of `kind` above each other, (count d, d). Do not write into it."""
        return self._constant(
            f"{kind} stacked", lambda: self._matrices(kind).reshape(-1, self.dim), dtype, device
        )

    def tiled(self, kind: Kind, tile: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """`tile` copies of each matrix of `kind` on a diagonal, (count, tile d, tile d). Read only."""

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
        """Plain Python (without the group) from which `block_from_spec` makes the block again."""
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
    """The block of `group` that `Block.spec()` described.

    Raises:
        RepresentationError: the type is unknown or the arguments do not fit.
    """
    if spec.get("type") == "Irrep":
        import equirelax.symmetry.irreps  # noqa: F401  (it registers the type)
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
