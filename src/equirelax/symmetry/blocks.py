"""The usual blocks: trivial, vector, position, sign, pseudovector, regular, and tensor products."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.block import Block, block_from_spec
from equirelax.symmetry.group import Group

if TYPE_CHECKING:
    from equirelax.symmetry.representation import Representation


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
    """The defining representation; of SE(n) and E(n) its linear part: translations leave a vector alone."""

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
    """A number multiplied by the sign of the determinant: a pseudoscalar, the parity of a permutation."""

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
            raise RepresentationError(
                f"A pseudovector needs a group that acts on R^3, but {group.name} acts on "
                f"R^{group.linear_dim}."
            )
        super().__init__(group, 3, "pseudovector")

    def matrix(self, g: Tensor) -> Tensor:
        linear = self.group.linear_part(g)
        return torch.linalg.det(linear).sign()[..., None, None] * linear

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
        elements = self.group.elements(g.dtype, g.device)
        products = (g.unsqueeze(-3) @ elements).flatten(-2)  # (..., order, n n): g h for every h
        image = torch.cdist(products, elements.flatten(-2)).argmin(dim=-1)
        return torch.nn.functional.one_hot(image, self.dim).to(g.dtype).mT

    def _generators(self) -> Tensor:
        return torch.zeros(0, self.dim, self.dim, dtype=torch.float64)

    def arguments(self) -> dict[str, Any]:
        return {}


class TensorProduct(Block):
    """rho_left (x) rho_right: entry (i, j) of the product is at index i * d_right + j."""

    def __init__(self, left: Block, right: Representation) -> None:
        if not (left.linear and right.linear):
            raise RepresentationError(
                f"The tensor product of {left!r} and {right!r} is not defined: positions are affine. Use "
                "linear_part(), or vectors."
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

    @cached_property
    def _key(self) -> str:
        right = [(copies, block._key) for copies, block in self.right.blocks]
        return json.dumps(["TensorProduct", self.left._key, right])

    def arguments(self) -> dict[str, Any]:
        return {"left": self.left.spec(), "right": self.right.block_specs()}

    @classmethod
    def from_arguments(cls, group: Group, arguments: dict[str, Any]) -> Block:
        from equirelax.symmetry.representation import Representation  # which is made of blocks

        right = Representation.from_block_specs(group, arguments["right"])
        return cls(block_from_spec(group, arguments["left"]), right)
