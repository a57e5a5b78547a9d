"""Representations on feature vectors: direct sums of blocks with multiplicities, and their tensor products."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry import products
from equirelax.symmetry.blocks import Block, Kind, Vector, block_from_spec
from equirelax.symmetry.group import Group

ORTHOGONAL = 1e-6
"""Tolerance, per entry, within which matrices count as orthogonal."""


class Representation:
    """A direct sum of multiples of blocks of one group.

    A feature vector holds the blocks one after the other. A block of multiplicity m and size d takes
    `m*d` entries, with entry i of copy u at `u*d + i` (the layout of e3nn's features). Neighbouring equal blocks are
    merged, which does not change the layout.

    Attributes:
        group: the group that acts.
        blocks: pairs (multiplicity, block).
        dim: length of a feature vector.
        linear: whether no block is affine (positions).
        invariant: whether every element leaves every vector unchanged.
    """

    def __init__(self, group: Group, blocks: Sequence[tuple[int, Block]]) -> None:
        """Build the direct sum of `blocks`, in this order.

        Raises:
            RepresentationError: a multiplicity is not an integer >= 0, or a block is of another group.
        """
        merged: list[tuple[int, Block]] = []
        for multiplicity, block in blocks:
            if isinstance(multiplicity, bool) or not isinstance(multiplicity, int) or multiplicity < 0:
                raise RepresentationError(
                    f"A multiplicity is a whole number >= 0, got {multiplicity!r} for {block!r}."
                )
            if block.group != group:
                raise RepresentationError(
                    f"Cannot put the block {block!r} into a representation of {group.name}: every block must "
                    "belong to one group."
                )
            if multiplicity and merged and merged[-1][1] == block:
                merged[-1] = (merged[-1][0] + multiplicity, merged[-1][1])
            elif multiplicity:
                merged.append((multiplicity, block))
        self.group = group
        self.blocks: tuple[tuple[int, Block], ...] = tuple(merged)
        self.dim = sum(multiplicity * block.dim for multiplicity, block in merged)
        self.linear = all(block.linear for _, block in merged)
        self.invariant = all(block.trivial for _, block in merged)
        ends = list(accumulate(multiplicity * block.dim for multiplicity, block in merged))
        self._slices = tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))

    def slices(self) -> tuple[slice, ...]:
        """Return the slice of the feature vector that each block takes, in the order of `blocks`."""
        return self._slices

    @cached_property
    def orthogonal(self) -> bool:
        """Whether every element preserves lengths; False for positions, which translations move.

        The closure of a group of orthogonal matrices is compact, even if the group is not.
        """
        if not self.linear:
            return False
        for _, block in self.blocks:
            matrices, eye = block.discrete(), torch.eye(block.dim, dtype=torch.float64)
            generators = block.generators()
            if not torch.allclose(generators, -generators.mT, atol=ORTHOGONAL):
                return False
            if not torch.allclose(matrices.mT @ matrices, eye, atol=ORTHOGONAL):
                return False
        return True

    # ---- making new ones -----------------------------------------------------------------------------------

    def __add__(self, other: Representation) -> Representation:
        """Build the direct sum: the features of `self`, then those of `other`."""
        if not isinstance(other, Representation):
            return NotImplemented
        return Representation(self.group, self.blocks + other.blocks)

    def __rmul__(self, copies: int) -> Representation:
        """Build `copies` of the whole feature vector, one after the other."""
        if isinstance(copies, bool) or not isinstance(copies, int) or copies < 0:
            raise RepresentationError(
                f"A representation is multiplied by a whole number >= 0, got {copies!r}."
            )
        if len(self.blocks) == 1:
            return Representation(self.group, [(copies * self.blocks[0][0], self.blocks[0][1])])
        return Representation(self.group, self.blocks * copies)

    def tensor(self, other: Representation) -> Representation:
        """Build the tensor product, whose entry (i, j) lies at i * other.dim + j (row-major Kronecker product).

        Raises:
            RepresentationError: the groups differ, or one of the two is affine.
        """
        self._check_group(other)
        self._check_linear("a tensor product")
        other._check_linear("a tensor product")
        if not other.blocks:
            return Representation(self.group, [])
        single = other.blocks[0][1] if len(other.blocks) == 1 else None
        multiplicity = other.blocks[0][0] if single is not None else 1
        out: list[tuple[int, Block]] = []
        for copies, block in self.blocks:
            if single is not None and block.trivial and block.dim == 1:
                out.append((copies * multiplicity, single))
            elif single is not None and single.trivial and single.dim == 1 and multiplicity == 1:
                out.append((copies, block))
            elif single is not None and block.dim == 1:
                out.append(
                    (copies * multiplicity, TensorProduct(block, Representation(self.group, [(1, single)])))
                )
            else:
                out.append((copies, TensorProduct(block, other)))
        return Representation(self.group, out)

    def linear_part(self) -> Representation:
        """Replace positions by vectors. The result is the representation of differences of such features."""
        blocks = [(copies, b if b.linear else Vector(self.group)) for copies, b in self.blocks]
        return Representation(self.group, blocks)

    # ---- elements ------------------------------------------------------------------------------------------

    def matrix(self, g: Tensor) -> Tensor:
        """Compute rho(g), (..., dim, dim), for elements g (..., n, n).

        Raises:
            RepresentationError: g has the wrong shape, or the representation is affine (use `apply`).
        """
        self._check_linear("a matrix")
        self.group.check_shape(g)
        return self._dense(lambda block: block.matrix(g), g.new_zeros((*g.shape[:-2], self.dim, self.dim)))

    def apply(self, g: Tensor, x: Tensor, axis: int = -1) -> Tensor:
        """Let g act on features x whose `axis` has length dim; affine representations are allowed.

        A single g is (n, n). A batch (*b, n, n) acts element by element on the first axes of x, not counting `axis`. These
        must have the sizes b, where b may also contain ones.

        Returns:
            A tensor of the shape and dtype of x.

        Raises:
            RepresentationError: shapes do not fit, or x is not floating point although g changes it.
        """
        self.group.check_shape(g)
        features = self._features_last(x, axis)
        if self.invariant:
            return x.clone()
        if not x.is_floating_point():
            raise RepresentationError(
                f"{self} acts on floating-point features, got {x.dtype}; only invariants may be integers."
            )
        batch, leading = g.shape[:-2], features.shape[:-1]
        fits = len(batch) <= len(leading) and all(
            b in (1, size) for b, size in zip(batch, leading, strict=False)
        )
        if not fits:
            raise RepresentationError(
                f"A batch of elements {tuple(batch)} must match the first axes of the features, which are "
                f"{tuple(leading)}."
            )
        lift = (*batch, *[1] * (len(leading) - len(batch)))
        parts = []
        for (copies, block), where in zip(self.blocks, self._slices, strict=True):
            part = features[..., where]
            if not block.trivial:
                part = part.reshape(*leading, copies, block.dim)
                part = part @ block.matrix(g).to(x).reshape(*lift, block.dim, block.dim).mT
                offset = block.offset(g)
                if offset is not None:
                    part = part + offset.to(x).reshape(*lift, 1, block.dim)
                part = part.reshape(*leading, copies * block.dim)
            parts.append(part)
        return torch.cat(parts, dim=-1).movedim(-1, axis)

    def generators(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor:
        """Compute drho(A_i) as dense matrices, (k, dim, dim); for an affine representation its linear part."""
        out = torch.zeros(self.group.algebra_dim, self.dim, self.dim, dtype=dtype, device=device)
        return self._dense(lambda block: block.generators(dtype, out.device), out)

    def discrete(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> Tensor:
        """Compute rho of the discrete generators as dense matrices, (c, dim, dim); for an affine one its linear part."""
        out = torch.zeros(self.group.discrete_count, self.dim, self.dim, dtype=dtype, device=device)
        return self._dense(lambda block: block.discrete(dtype, out.device), out)

    def _dense(self, of: Callable[[Block], Tensor], out: Tensor) -> Tensor:
        """Write `of(block)` (..., d, d) on the diagonal of `out` (..., dim, dim), once for every copy."""
        for (copies, block), where in zip(self.blocks, self._slices, strict=True):
            tiles = out[..., where, where].unflatten(-1, (copies, -1)).unflatten(-3, (copies, -1))
            tiles.diagonal(dim1=-4, dim2=-2).copy_(of(block).unsqueeze(-1))  # (..., d, d, copies)
        return out

    # ---- products with the Lie algebra and the discrete elements -------------------------------------------

    def derivative(self, x: Tensor, axis: int = -1) -> Tensor:
        """Compute d/dt of exp(t A_i) acting on x, at t = 0, for every basis element: (k, *x.shape).

        This is drho(A_i) x for a linear block, and drho(A_i) x + a_i for an affine one, where a_i is the velocity of the
        translation.
        """
        features = self._features_last(x, axis)
        flat = features.reshape(math.prod(features.shape[:-1]), self.dim)
        k = self.group.algebra_dim
        parts = []
        for (multiplicity, block), where in zip(self.blocks, self._slices, strict=True):
            part = products.rows(block, multiplicity, flat[:, where], "generators", transposed=True)
            offsets = block.generator_offsets(x.dtype, x.device)
            if offsets is not None:
                part = part + offsets.repeat(1, multiplicity).unsqueeze(1)
            parts.append(part)
        out = torch.cat(parts, dim=-1) if parts else flat.new_zeros(k, *flat.shape)
        return out.reshape(k, *features.shape).movedim(-1, axis if axis < 0 else axis + 1)

    def left(self, weight: Tensor) -> Tensor:
        """Compute drho(A_i) @ W for W (dim, m): (k, dim, m)."""
        return self._left(weight, "generators")

    def right(self, weight: Tensor) -> Tensor:
        """Compute W @ drho(A_i) for W (m, dim): (k, m, dim)."""
        return self._right(weight, "generators")

    def left_transposed(self, stack: Tensor) -> Tensor:
        """Compute sum_i drho(A_i)^T @ M_i for M (k, dim, m): (dim, m), the adjoint of `left`."""
        return self._left_transposed(stack, "generators")

    def right_transposed(self, stack: Tensor) -> Tensor:
        """Compute sum_i M_i @ drho(A_i)^T for M (k, m, dim): (m, dim), the adjoint of `right`."""
        return self._right_transposed(stack, "generators")

    def discrete_left(self, weight: Tensor) -> Tensor:
        """Compute rho(g_j) @ W for the discrete generators g_j and W (dim, m): (c, dim, m)."""
        return self._left(weight, "discrete")

    def discrete_right(self, weight: Tensor) -> Tensor:
        """Compute W @ rho(g_j) for the discrete generators g_j and W (m, dim): (c, m, dim)."""
        return self._right(weight, "discrete")

    def discrete_left_transposed(self, stack: Tensor) -> Tensor:
        """Compute sum_j rho(g_j)^T @ M_j for M (c, dim, m): (dim, m), the adjoint of `discrete_left`."""
        return self._left_transposed(stack, "discrete")

    def discrete_right_transposed(self, stack: Tensor) -> Tensor:
        """Compute sum_j M_j @ rho(g_j)^T for M (c, m, dim): (m, dim), the adjoint of `discrete_right`."""
        return self._right_transposed(stack, "discrete")

    def _left(self, weight: Tensor, kind: Kind) -> Tensor:
        self._check_weight(weight, 2, -2, "(dim, m)")
        parts = [
            products.columns(b, m, weight[s], kind)
            for (m, b), s in zip(self.blocks, self._slices, strict=True)
        ]
        return _joined(parts, -2, weight, self._count(kind))

    def _right(self, weight: Tensor, kind: Kind) -> Tensor:
        self._check_weight(weight, 2, -1, "(m, dim)")
        parts = [
            products.rows(b, m, weight[:, s], kind, transposed=False)
            for (m, b), s in zip(self.blocks, self._slices, strict=True)
        ]
        return _joined(parts, -1, weight, self._count(kind))

    def _left_transposed(self, stack: Tensor, kind: Kind) -> Tensor:
        self._check_weight(stack, 3, -2, "(count, dim, m)", self._count(kind))
        parts = [
            products.columns_adjoint(b, m, stack[:, s], kind)
            for (m, b), s in zip(self.blocks, self._slices, strict=True)
        ]
        return torch.cat(parts, dim=0) if parts else stack.sum(dim=0)

    def _right_transposed(self, stack: Tensor, kind: Kind) -> Tensor:
        self._check_weight(stack, 3, -1, "(count, m, dim)", self._count(kind))
        parts = [
            products.rows_adjoint(b, m, stack[..., s], kind)
            for (m, b), s in zip(self.blocks, self._slices, strict=True)
        ]
        return torch.cat(parts, dim=-1) if parts else stack.sum(dim=0)

    def _count(self, kind: Kind) -> int:
        return self.group.algebra_dim if kind == "generators" else self.group.discrete_count

    # ---- checks --------------------------------------------------------------------------------------------

    def _check_group(self, other: Representation) -> None:
        if self.group != other.group:
            raise RepresentationError(
                f"{self} is a representation of {self.group.name} and {other} one of {other.group.name}: "
                "they must be of one group."
            )

    def _check_linear(self, what: str) -> None:
        if not self.linear:
            raise RepresentationError(
                f"{self} holds positions, on which translations act by adding, so {what} of it does not exist. "
                "Use apply() and derivative(), or linear_part() for differences of positions."
            )

    def _check_weight(
        self, weight: Tensor, axes: int, axis: int, shape: str, count: int | None = None
    ) -> None:
        self._check_linear("a product of matrices")
        wrong_count = count is not None and len(weight) != count
        if weight.dim() != axes or weight.shape[axis] != self.dim or wrong_count:
            counted = "" if count is None else f" and count = {count}"
            raise RepresentationError(
                f"{self}: expected a tensor {shape} with dim = {self.dim}{counted}, got shape "
                f"{tuple(weight.shape)}."
            )

    def _features_last(self, x: Tensor, axis: int) -> Tensor:
        if not -x.dim() <= axis < x.dim() or x.shape[axis] != self.dim:
            raise RepresentationError(
                f"{self} acts on features of length {self.dim}, but axis {axis} of a tensor of shape "
                f"{tuple(x.shape)} does not have that length. Is the axis right, or is it another "
                "representation's feature?"
            )
        return x.movedim(axis, -1)

    # ---- plain data ----------------------------------------------------------------------------------------

    def block_specs(self) -> list[list[Any]]:
        """Return [multiplicity, spec of the block] for every block, as plain Python values."""
        return [[multiplicity, block.spec()] for multiplicity, block in self.blocks]

    def spec(self) -> dict[str, Any]:
        """Return plain, JSON-compatible Python values from which `from_spec` rebuilds the representation."""
        return {"group": self.group.spec(), "blocks": self.block_specs()}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Representation:
        """Build the representation that `spec()` describes.

        Raises:
            RepresentationError: a key, group or block is unknown.
        """
        if not isinstance(spec, dict) or set(spec) != {"group", "blocks"}:
            raise RepresentationError(
                f"A representation's spec is a dict with keys 'group' and 'blocks', got {spec!r}."
            )
        return cls.from_block_specs(Group.from_spec(spec["group"]), spec["blocks"])

    @classmethod
    def from_block_specs(cls, group: Group, specs: Sequence[Sequence[Any]]) -> Representation:
        """Build the representation of `group` that `block_specs()` describes."""
        return cls(group, [(multiplicity, block_from_spec(group, spec)) for multiplicity, spec in specs])

    def label(self) -> str:
        """Return the blocks without the group, such as `32x0e+32x1o`."""
        return "+".join(f"{multiplicity}x{block.name}" for multiplicity, block in self.blocks) or "0"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Representation) and self.group == other.group and self.blocks == other.blocks

    def __hash__(self) -> int:
        return hash((self.group, self.blocks))

    def __repr__(self) -> str:
        if self.blocks and all(block.names_group for _, block in self.blocks):
            return self.label()
        return f"{self.label()}[{self.group.name}]"


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
        right = Representation.from_block_specs(group, arguments["right"])
        return cls(block_from_spec(group, arguments["left"]), right)


def _joined(parts: list[Tensor], axis: int, weight: Tensor, count: int) -> Tensor:
    """Concatenate the blocks' products; an empty tensor of the right shape for a representation of size 0."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, dim=axis) if parts else weight.new_zeros(count, *weight.shape)
