"""How a group acts on one small vector: the blocks that representations are direct sums of."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.files import did_you_mean
from equirelax.symmetry.group import Group
from equirelax.symmetry.matrix_group import structure_constants

if TYPE_CHECKING:
    from equirelax.symmetry.representation import Representation

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

    def generators(self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None) -> Tensor:
        """drho(A_i) for the basis A of the group's Lie algebra, (k, d, d). Do not write into it."""
        return self._constant("generators", self._generators, dtype, device)

    def discrete(self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None) -> Tensor:
        """rho of the group's discrete generators, (c, d, d). Do not write into it."""
        return self._constant("discrete", self._discrete, dtype, device)

    def generator_offsets(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor | None:
        """Derivative of `offset` along the basis, (k, d); None for a linear block."""
        return None

    def known_hom(self, other: Block) -> Tensor | None:
        """Orthonormal basis (b, d_other, d) of the equivariant maps to `other` where theory gives it, else None."""
        return None

    def stacked(self, kind: Kind, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The matrices of `kind` above each other, (count d, d). Do not write into it."""
        return self._constant(f"{kind} stacked", lambda: self._matrices(kind).reshape(-1, self.dim), dtype, device)

    def tiled(self, kind: Kind, tile: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """`tile` copies of each matrix of `kind` along a diagonal, (count, tile d, tile d). Do not write into it."""
        matrices = self._matrices(kind)
        eye = torch.eye(tile, dtype=matrices.dtype)

        def build() -> Tensor:
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
            # Outside inference mode: a tensor made inside could never again take part in a backward pass.
            with torch.inference_mode(False), torch.no_grad():
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
        raise RepresentationError(f"Unknown block {name!r}.{did_you_mean(str(name), known)} Known: {', '.join(known)}.")
    try:
        return _TYPES[name].from_arguments(group, arguments)
    except TypeError as error:
        raise RepresentationError(f"The spec {spec!r} does not fit the block {name!r}: {error}") from error


class Trivial(Block):
    """A number that no element changes."""

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
    """The defining representation; for SE(n) and E(n) its linear part, so that translations leave a vector alone."""

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
                f"{group.name} has no translations, so its positions are vectors: use positions(group), which gives them."
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
    """A number that is multiplied by the sign of the determinant: a pseudoscalar, the parity of a permutation."""

    def __init__(self, group: Group) -> None:
        super().__init__(group, 1, "sign")

    def matrix(self, g: Tensor) -> Tensor:
        return torch.linalg.det(self.group.linear_part(g)).sign()[..., None, None]

    def _generators(self) -> Tensor:
        return torch.zeros(self.group.algebra_dim, 1, 1, dtype=torch.float64)

    def arguments(self) -> dict[str, Any]:
        return {}


class Pseudovector(Block):
    """det(R) R for groups of rotations and reflections of R^3: angular momenta, magnetic fields."""

    def __init__(self, group: Group) -> None:
        if group.linear_dim != 3:
            raise RepresentationError(f"A pseudovector needs a group that acts on R^3, but {group.name} acts on R^{group.linear_dim}.")
        super().__init__(group, 3, "pseudovector")

    def matrix(self, g: Tensor) -> Tensor:
        linear = self.group.linear_part(g)
        return torch.linalg.det(linear).sign()[..., None, None] * linear

    def _generators(self) -> Tensor:
        return self.group.linear_part(self.group.algebra())

    def arguments(self) -> dict[str, Any]:
        return {}


class Regular(Block):
    """The regular representation of a finite group: basis vector e_h goes to e_gh, elements in the order of `group.elements()`."""

    def __init__(self, group: Group) -> None:
        if group.order is None:
            raise RepresentationError(f"Only a finite group has a regular representation with finitely many entries; {group.name} is infinite.")
        super().__init__(group, group.order, "regular")

    def matrix(self, g: Tensor) -> Tensor:
        self.group.check_shape(g)
        elements = self.group.elements(g.dtype, g.device)
        products = (g.unsqueeze(-3) @ elements).flatten(-2)  # (..., order, n n): g h for every h
        image = torch.cdist(products, elements.flatten(-2)).argmin(dim=-1)
        return torch.nn.functional.one_hot(image, self.dim).to(g.dtype).mT

    def _generators(self) -> Tensor:
        return torch.zeros(0, self.dim, self.dim, dtype=torch.float64)

    def arguments(self) -> dict[str, Any]:
        return {}


class Custom(Block):
    """A representation by the user's own matrices.

    Args:
        group: the group that acts.
        generators: drho(A_i), (k, d, d), for the basis `group.algebra()` in its order; None where k = 0.
        discrete: rho of `group.discrete()`, (c, d, d), in its order; None where c = 0.
        matrix_fn: g (..., n, n) -> rho(g) (..., d, d). Without it `matrix` and `apply` raise, while everything in
            weight space works. A function makes the block impossible to write as a spec; it pickles if the function does.
        name: for tables and messages.

    Raises:
        RepresentationError: counts or shapes do not fit the group, or the commutators are not those of its algebra.
    """

    def __init__(
        self,
        group: Group,
        generators: Tensor | Sequence[Any] | None = None,
        discrete: Tensor | Sequence[Any] | None = None,
        matrix_fn: Callable[[Tensor], Tensor] | None = None,
        name: str = "custom",
    ) -> None:
        self._given = [
            _as_matrices(value, len(wanted), f"{label} of {group.name}")
            for value, wanted, label in (
                (generators, group.algebra(), "generators"), (discrete, group.discrete(), "discrete elements")
            )
        ]  # fmt: skip
        sizes = {part.shape[-1] for part in self._given if len(part)}
        if len(sizes) != 1:
            raise RepresentationError(
                f"custom representation of {group.name}: all matrices must have one size (d, d), got sizes {sorted(sizes)}."
            )
        super().__init__(group, sizes.pop(), name)
        self._given = [part if len(part) else part.new_zeros(0, self.dim, self.dim) for part in self._given]
        self._matrix_fn = matrix_fn
        self._check_commutators()

    def _check_commutators(self) -> None:
        rho, basis = self._given[0], self.group.algebra()
        if not len(basis):
            return
        constants = structure_constants(basis, self.group.name)
        products = rho.unsqueeze(1) @ rho.unsqueeze(0)
        wanted = torch.einsum("ijm,mab->ijab", constants, rho)
        error = float((products - products.transpose(0, 1) - wanted).abs().max())
        if error > 1e-6 * max(1.0, float(rho.abs().max()) ** 2):
            raise RepresentationError(
                f"custom representation {self.name!r}: the generators' commutators differ from those of {self.group.name}'s algebra "
                f"by {error:.2g}. Give drho(A_i) for A = group.algebra(), in its order and with its signs."
            )

    def matrix(self, g: Tensor) -> Tensor:
        self.group.check_shape(g)
        if self._matrix_fn is None:
            raise RepresentationError(
                f"custom representation {self.name!r} of {self.group.name} knows its generators, not the matrix of an "
                "element: pass matrix_fn= to custom(...)."
            )
        out = self._matrix_fn(g)
        if out.shape != (*g.shape[:-2], self.dim, self.dim):
            raise RepresentationError(
                f"matrix_fn of {self.name!r} gave shape {tuple(out.shape)} for elements of shape {tuple(g.shape)}; expected "
                f"{(*g.shape[:-2], self.dim, self.dim)}."
            )
        return out

    def _generators(self) -> Tensor:
        return self._given[0]

    def _discrete(self) -> Tensor:
        return self._given[1]

    def arguments(self) -> dict[str, Any]:
        return {"name": self.name, "generators": self._given[0].tolist(), "discrete": self._given[1].tolist()}

    def spec(self) -> dict[str, Any]:
        if self._matrix_fn is not None:
            raise RepresentationError(
                f"custom representation {self.name!r} holds a Python function, which cannot be written as plain data. "
                "Write it without matrix_fn, or pickle it."
            )
        return super().spec()

    @cached_property
    def _key(self) -> str:
        function = "" if self._matrix_fn is None else f"{self._matrix_fn.__module__}.{self._matrix_fn.__qualname__}"
        return json.dumps({**self.arguments(), "matrix_fn": function}, sort_keys=True)


def _as_matrices(value: Tensor | Sequence[Any] | None, count: int, label: str) -> Tensor:
    if value is None:
        value = []
    out = torch.as_tensor(value).detach().to(device="cpu", dtype=torch.float64).clone()
    if out.numel() == 0 and count == 0:
        return torch.zeros(0, 0, 0, dtype=torch.float64)
    if out.dim() != 3 or out.shape[1] != out.shape[2] or len(out) != count:
        raise RepresentationError(f"Expected matrices of the {count} {label} as ({count}, d, d), got shape {tuple(out.shape)}.")
    if not torch.isfinite(out).all():
        raise RepresentationError(f"The matrices of the {label} hold NaN or infinity.")
    return out


class TensorProduct(Block):
    """rho_left (x) rho_right: entry (i, j) of the product is at index i * d_right + j."""

    def __init__(self, left: Block, right: Representation) -> None:
        if not (left.linear and right.linear):
            raise RepresentationError(
                f"The tensor product of {left!r} and {right!r} is not defined: positions are affine. Use linear_part(), or vectors."
            )
        super().__init__(left.group, left.dim * right.dim, f"({left.name} x {right.label()})")
        self.left = left
        self.right = right

    def matrix(self, g: Tensor) -> Tensor:
        left, right = self.left.matrix(g), self.right.matrix(g)
        product = left[..., :, None, :, None] * right[..., None, :, None, :]
        return product.reshape(*g.shape[:-2], self.dim, self.dim)

    def _generators(self) -> Tensor:
        left, right = self.left.generators(), self.right.generators()
        eye_left = torch.eye(self.left.dim, dtype=torch.float64)
        eye_right = torch.eye(self.right.dim, dtype=torch.float64)
        # d/dt of rho_left (x) rho_right: the product rule.
        terms = [torch.kron(a, eye_right) + torch.kron(eye_left, b) for a, b in zip(left, right, strict=True)]
        return torch.stack(terms) if terms else torch.zeros(0, self.dim, self.dim, dtype=torch.float64)

    def _discrete(self) -> Tensor:
        terms = [torch.kron(a, b) for a, b in zip(self.left.discrete(), self.right.discrete(), strict=True)]
        return torch.stack(terms) if terms else torch.zeros(0, self.dim, self.dim, dtype=torch.float64)

    def arguments(self) -> dict[str, Any]:
        return {"left": self.left.spec(), "right": self.right.block_specs()}

    @classmethod
    def from_arguments(cls, group: Group, arguments: dict[str, Any]) -> Block:
        from equirelax.symmetry.representation import Representation  # which is made of blocks

        right = Representation.from_block_specs(group, arguments["right"])
        return cls(block_from_spec(group, arguments["left"]), right)
