"""Blocks of the user's own matrices. The generators' matrices are enough if those of all elements follow from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.blocks import Block
from equirelax.symmetry.exponential import matrix_exp, rotation_vectors
from equirelax.symmetry.group import ELEMENT_LIMIT, Group, closure, widened
from equirelax.symmetry.lie import SO, O
from equirelax.symmetry.matrix_group import structure_constants


class Custom(Block):
    """A block of the user's own matrices.

    Args:
        group: the group that acts.
        generators: drho(A_i), (k, d, d), for the basis `group.algebra()` in its order; None if k = 0.
        discrete: rho of `group.discrete()`, (c, d, d), in its order; None if c = 0.
        matrix_fn: g (..., n, n) -> rho(g) (..., d, d). Finite groups, and SO(n) and O(n) with n = 2, 3, do not need it,
            because rho follows from the generators. For other groups `matrix` and `apply` raise without it, but everything
            in weight space works. A block with a function has no spec, and can be pickled only if the function can.
        name: the name in tables and messages.

    Raises:
        RepresentationError: counts or shapes do not fit the group, the commutators are not those of its algebra, or the
            discrete elements do not conjugate the generators as the group's do.
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
                f"custom representation of {group.name}: all matrices must have one size (d, d), got sizes "
                f"{sorted(sizes)}."
            )
        super().__init__(group, sizes.pop(), name)
        self._given = [part if len(part) else part.new_zeros(0, self.dim, self.dim) for part in self._given]
        self._matrix_fn = matrix_fn
        self._check_commutators()
        self._check_discrete()

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
                f"custom representation {self.name!r}: the generators' commutators differ from those of "
                f"{self.group.name}'s algebra by {error:.2g}. Give drho(A_i) for A = group.algebra(), in its "
                "order and with its signs."
            )

    def _check_discrete(self) -> None:
        """Check rho(h) drho(A) rho(h)^-1 = drho(h A h^-1), and rho(h)^2 = 1 where h^2 = 1.

        `_element_table` checks finite groups.
        """
        basis, (rho, turned) = self.group.algebra(), self._given
        if not len(basis):
            return
        for h, own in zip(self.group.discrete(), turned, strict=True):
            inverse = torch.linalg.inv(h)
            coefficients = (h @ basis @ inverse).flatten(1) @ torch.linalg.pinv(basis.flatten(1))
            wanted = torch.einsum("ij,jab->iab", coefficients, rho)
            wrong = [own @ rho - wanted @ own]
            if torch.allclose(h @ h, torch.eye(len(h), dtype=h.dtype, device=h.device)):
                wrong.append(own @ own - torch.eye(self.dim, dtype=own.dtype, device=own.device))
            error = max(float(part.abs().max()) for part in wrong)
            if error > 1e-6 * max(1.0, float(rho.abs().max()), float(own.abs().max())) ** 2:
                raise RepresentationError(
                    f"custom representation {self.name!r}: the discrete elements and the generators are not of one "
                    f"representation of {self.group.name} (off by {error:.2g}). Give rho(h) for h = group.discrete(), in "
                    "its order."
                )

    def matrix(self, g: Tensor) -> Tensor:
        self.group.check_shape(g)
        if self._matrix_fn is None and self.group.order is not None:
            return _looked_up(self.group, self._constant("table", self._table, g.dtype, g.device), g)
        if self._matrix_fn is None and _is_rotations(self.group):
            return _exponentials(self.group, self._given[0], self._given[1], g)
        if self._matrix_fn is None:
            raise RepresentationError(
                f"custom representation {self.name!r} of {self.group.name} knows its generators, not the "
                "matrix of an element: pass matrix_fn= to custom(...)."
            )
        out = self._matrix_fn(g)
        if out.shape != (*g.shape[:-2], self.dim, self.dim):
            raise RepresentationError(
                f"matrix_fn of {self.name!r} gave shape {tuple(out.shape)} for elements of shape "
                f"{tuple(g.shape)}; expected {(*g.shape[:-2], self.dim, self.dim)}."
            )
        return out

    def _generators(self) -> Tensor:
        return self._given[0]

    def _discrete(self) -> Tensor:
        return self._given[1]

    def _table(self) -> Tensor:
        return _element_table(self.group, self._given[1])

    def arguments(self) -> dict[str, Any]:
        return {"name": self.name, "generators": self._given[0].tolist(), "discrete": self._given[1].tolist()}

    def spec(self) -> dict[str, Any]:
        if self._matrix_fn is not None:
            raise RepresentationError(
                f"custom representation {self.name!r} holds a Python function, which cannot be written as "
                "plain data. Write it without matrix_fn, or pickle it."
            )
        return super().spec()

    @cached_property
    def _key(self) -> str:
        function = (
            "" if self._matrix_fn is None else f"{self._matrix_fn.__module__}.{self._matrix_fn.__qualname__}"
        )
        return json.dumps({**self.arguments(), "matrix_fn": function}, sort_keys=True)


def _as_matrices(value: Tensor | Sequence[Any] | None, count: int, label: str) -> Tensor:
    if value is None:
        value = []
    out = torch.as_tensor(value, dtype=torch.float64).detach().to(device="cpu").clone()
    if out.numel() == 0 and count == 0:
        return torch.zeros(0, 0, 0, dtype=torch.float64)
    if out.dim() != 3 or out.shape[1] != out.shape[2] or len(out) != count:
        raise RepresentationError(
            f"Expected matrices of the {count} {label} as ({count}, d, d), got shape {tuple(out.shape)}."
        )
    if not torch.isfinite(out).all():
        raise RepresentationError(f"The matrices of the {label} hold NaN or infinity.")
    return out


def _is_rotations(group: Group) -> bool:
    """Whether `_exponentials` reaches every element of the group from its generators."""
    return isinstance(group, SO | O) and group.n in (2, 3)


def _element_table(group: Group, discrete: Tensor) -> Tensor:
    """Compute rho of all elements of a finite group, in the order of `group.elements()`: (order, d, d) in float64.

    Args:
        discrete: rho of `group.discrete()`, (c, d, d).

    Raises:
        RepresentationError: the matrices do not obey the same relations as the group's generators.
    """
    elements = group.elements()
    dim, size = group.dim, discrete.shape[-1]
    pairs = torch.zeros(len(discrete), dim + size, dim + size, dtype=torch.float64)
    pairs[:, :dim, :dim], pairs[:, dim:, dim:] = group.discrete(), discrete
    # There are as many products of the pairs (g, rho(g)) as elements exactly if rho is a representation.
    reached = closure(pairs, min(2 * len(elements), ELEMENT_LIMIT)) if len(pairs) else None
    if reached is None:
        if len(elements) == 1:
            return torch.eye(size, dtype=torch.float64)[None]
        reached = pairs
    if len(reached) != len(elements):
        raise RepresentationError(
            f"matrices of size {size} for the {len(discrete)} generators of {group.name} give more products than the "
            f"group's {len(elements)} elements: they obey other relations, so they are not a representation of it"
        )
    order = torch.cdist(elements.flatten(1), reached[:, :dim, :dim].flatten(1)).argmin(dim=1)
    return reached[order, dim:, dim:]


def _looked_up(group: Group, table: Tensor, g: Tensor) -> Tensor:
    """Look up rho(g), (..., d, d), for elements (..., n, n) of a finite group, in `_element_table`."""
    group.check_shape(g)
    wide = widened(g)
    elements = group.elements(wide.dtype, g.device).flatten(1)
    index = torch.cdist(wide.flatten(-2).reshape(-1, elements.shape[1]), elements).argmin(dim=-1)
    return table[index].reshape(*g.shape[:-2], *table.shape[1:])


def _exponentials(group: Group, generators: Tensor, discrete: Tensor, g: Tensor) -> Tensor:
    """Compute rho(g), (..., d, d) in the dtype of g, for SO(n) and O(n) with n = 2, 3.

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
    """Compute c (..., k) with R = exp(sum c_i A_i), for rotations (..., n, n) of the plane or of space."""
    if group.linear_dim == 2:
        return torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])[..., None] / group.algebra()[0, 1, 0]
    return rotation_vectors(rotation)
