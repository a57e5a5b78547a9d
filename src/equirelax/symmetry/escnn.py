"""Convert escnn's groups, elements and field types. Nothing here imports escnn; objects are recognised by their classes.

A gspace's fiber group becomes the group of matrices by which it acts on the base space. On the plane these are (2, 2), with
x to the right, y up and the origin at the centre of the grid, as everywhere in equirelax. escnn's default reflection is
about the y axis and ours about the x axis, so the order of elements, and of a regular field's channels, may differ. Such a
field becomes a `Custom` representation in escnn's channel order, and nothing is permuted.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.blocks import Block, Regular, Sign, Trivial, Vector
from equirelax.symmetry.custom import Custom
from equirelax.symmetry.exponential import matrix_exp
from equirelax.symmetry.finite import Cyclic, Dihedral
from equirelax.symmetry.group import Group
from equirelax.symmetry.lie import SO, O
from equirelax.symmetry.matrix_group import MatrixGroup
from equirelax.symmetry.representation import Representation

_CLOSE = 1e-9


def is_escnn(value: Any, name: str) -> bool:
    """Whether a value is of escnn's class `name` or of one derived from it, without importing escnn."""
    return any(cls.__name__ == name and cls.__module__.startswith("escnn.") for cls in type(value).__mro__)


def element_matrix(space: Any, element: Any) -> Tensor:
    """Compute the matrix (n, n) by which an element, in escnn's own parametrisation, acts on the base space.

    Args:
        space: A gspace. Without a base space, the fiber group's defining action is used: rotations and reflections of
            the plane for cyclic and dihedral groups, and of space for the others.
        element: An element of the gspace's fiber group.
    """
    return torch.as_tensor(_action(space)(element), dtype=torch.float64)


def from_gspace(space: Any) -> Group:
    """Convert a gspace's fiber group to the group of matrices by which it acts on the base space.

    Returns:
        Cyclic, Dihedral (where a reflection keeps the x axis), SO, O, or a finite MatrixGroup.

    Raises:
        RepresentationError: the fiber group is infinite, and neither SO(n) nor O(n) on its n axes.
    """
    return _converted(space).group


def from_field_type(field_type: Any) -> Representation:
    """Convert a field type to the representation of its fiber group on the channels, in escnn's order.

    Raises:
        RepresentationError: as for `from_gspace`, or the derivative of a representation cannot be determined.
    """
    space = field_type.gspace
    conversion = _converted(space)
    return Representation(conversion.group, [conversion.block(r) for r in field_type.representations])


def from_representation(space: Any, representation: Any) -> Representation:
    """Convert one representation of a gspace's fiber group."""
    conversion = _converted(space)
    return Representation(conversion.group, [conversion.block(representation)])


_CONVERSIONS: dict[tuple[str, int], _Conversion] = {}


def _converted(space: Any) -> _Conversion:
    """Return the cached conversion of a gspace. Some of escnn's groups cannot be hashed, but each exists only once."""
    key = (str(space.name), id(space.fibergroup))
    if key not in _CONVERSIONS:
        _CONVERSIONS[key] = _Conversion(space)
    return _CONVERSIONS[key]


def _action(space: Any) -> Any:
    """Return the representation of the fiber group by which elements become matrices."""
    if space.basespace_action is not None:
        return space.basespace_action
    fiber = space.fibergroup
    if is_escnn(fiber, "CyclicGroup"):
        # Orders 1 and 2 have no two-dimensional irreps, but rotations by 2 pi / n are still a sum of irreps.
        return lambda element: _turn(2 * math.pi * int(element.value) / fiber.order()).numpy()
    if is_escnn(fiber, "DihedralGroup"):
        n = fiber.order() // 2
        mirror = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
        return lambda element: (
            _turn(2 * math.pi * int(element.value[1]) / n) @ (mirror if element.value[0] else mirror @ mirror)
        ).numpy()
    if hasattr(fiber, "standard_representation"):
        return fiber.standard_representation()
    raise RepresentationError(
        f"escnn's group {fiber} without a base space has no defining matrices that equirelax knows: use a gspace that "
        "acts on the plane or on space, or a subgroup of O(3)"
    )


def _turn(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


class _Conversion:
    """A gspace's group as one of ours, with escnn's elements that correspond to our elements or generators."""

    def __init__(self, space: Any) -> None:
        self.space, self.fiber = space, space.fibergroup
        self.action = _action(space)
        self._blocks: dict[str, tuple[int, Block]] = {}
        if self.fiber.continuous:
            self.group: Group = self._continuous()
        else:
            self.elements = list(self.fiber.elements)
            self.matrices = torch.stack(
                [torch.as_tensor(self.action(e), dtype=torch.float64) for e in self.elements]
            )
            self.group = self._finite()

    def _finite(self) -> Group:
        order, dim = len(self.matrices), self.matrices.shape[-1]
        candidates: list[Group] = [Cyclic(order)] if dim == 2 else []
        if dim == 2 and order % 2 == 0:
            candidates.append(Dihedral(order // 2))
        for group in candidates:
            if bool(group.contains(self.matrices, atol=1e-6).all()):
                return group
        name, cyclic = str(self.fiber), is_escnn(self.fiber, "CyclicGroup")
        if dim == 2:
            name = "flips" if cyclic else f"tilted {name}"
        elif cyclic or is_escnn(self.fiber, "DihedralGroup"):
            name = f"{name} in space"
        return MatrixGroup(None, self.matrices[1:], name=name)

    def _continuous(self) -> Group:
        dim = self.matrix(self.fiber.identity).shape[-1]
        if is_escnn(self.fiber, f"SO{dim}"):
            return SO(dim)
        if is_escnn(self.fiber, f"O{dim}"):
            return O(dim)
        raise RepresentationError(
            f"escnn's {self.space} has the infinite fiber group {self.fiber} on {dim} axes; equirelax converts finite "
            "groups, SO(2) and O(2) on the plane, SO(3) and O(3) on space"
        )

    def matrix(self, element: Any) -> Tensor:
        return torch.as_tensor(self.action(element), dtype=torch.float64)

    def block(self, representation: Any) -> tuple[int, Block]:
        """Convert a representation to (copies, block): a named block if it is one, else a `Custom`."""
        name = representation.name
        if name not in self._blocks:
            made = self._finite_block if self.group.order is not None else self._continuous_block
            self._blocks[name] = made(representation)
        return self._blocks[name]

    # ---- finite groups --------------------------------------------------------------------------------------

    def _of(self, wanted: Tensor, representation: Any) -> Tensor:
        """Compute rho (count, d, d) of elements given as matrices (count, n, n)."""
        index = torch.cdist(wanted.flatten(1), self.matrices.flatten(1)).argmin(dim=1)
        found = [
            torch.as_tensor(representation(self.elements[i]), dtype=torch.float64) for i in index.tolist()
        ]
        return (
            _clean(torch.stack(found)) if found else torch.zeros(0, representation.size, representation.size)
        )

    def _finite_block(self, representation: Any) -> tuple[int, Block]:
        elements, size = self.group.elements(), int(representation.size)
        table = self._of(elements, representation)
        if torch.allclose(table, torch.eye(size, dtype=torch.float64).expand_as(table), rtol=0, atol=_CLOSE):
            return size, Trivial(self.group)
        named: list[Block] = [Sign(self.group), Vector(self.group)]
        if size == len(elements):
            named.append(Regular(self.group))
        for block in named:
            if block.dim == size and torch.allclose(block.matrix(elements), table, rtol=0, atol=_CLOSE):
                return 1, block
        discrete = self._of(self.group.discrete(), representation)
        return 1, Custom(self.group, None, discrete, name=_label(representation))

    # ---- SO(n), O(n) ----------------------------------------------------------------------------------------

    def _element(self, matrix: Tensor) -> Any:
        """Return escnn's element that acts by a given matrix (n, n)."""
        flipped = float(torch.linalg.det(matrix)) < 0
        if matrix.shape[-1] == 3:
            rotation = (-matrix if flipped else matrix).numpy()
            value = (int(flipped), rotation) if is_escnn(self.fiber, "O3") else rotation
            return self.fiber.element(value, "MAT")
        if is_escnn(self.fiber, "SO2"):
            return self.fiber.element(_angle(matrix), "radians")
        # If escnn's flip acts by a reflection other than ours, ours is a rotation times escnn's.
        mirror = self.matrix(self.fiber.element((1, 0.0), "radians"))
        return self.fiber.element((int(flipped), _angle(matrix @ mirror if flipped else matrix)), "radians")

    def _continuous_block(self, representation: Any) -> tuple[int, Block]:
        size = int(representation.size)
        drho = torch.stack([self._derivative(representation, basis) for basis in self.group.algebra()])
        mirrors = [
            torch.as_tensor(representation(self._element(m)), dtype=torch.float64)
            for m in self.group.discrete()
        ]
        discrete = (
            _clean(torch.stack(mirrors)) if mirrors else torch.zeros(0, size, size, dtype=torch.float64)
        )
        for block in (Trivial(self.group), Sign(self.group), Vector(self.group)):
            if block.dim == size and all(
                torch.allclose(mine, theirs, rtol=0, atol=_CLOSE)
                for mine, theirs in ((block.generators(), drho), (block.discrete(), discrete))
            ):
                return 1, block
        return 1, Custom(self.group, drho, discrete if len(discrete) else None, name=_label(representation))

    def _derivative(self, representation: Any, basis: Tensor) -> Tensor:
        """Compute drho(A) = d/dt rho(exp(tA)) at t = 0, (d, d), exactly up to rounding.

        rho(exp(tA)) is a trigonometric polynomial; at n > 2 frequencies points its derivative is a sum of its values,
        `sum_j (-1)^j / (2 sin(t_j / 2)) rho(t_j)` up to sign, for odd n.
        """
        for count in (33, 129, 513):
            angles = 2 * math.pi * torch.arange(1, count, dtype=torch.float64) / count
            signs = -((-1.0) ** torch.arange(1, count, dtype=torch.float64))
            values = [
                torch.as_tensor(representation(self._element(matrix_exp(t * basis))), dtype=torch.float64)
                for t in angles
            ]
            found = torch.einsum("j,jab->ab", signs / (2 * torch.sin(angles / 2)), torch.stack(values))
            if torch.allclose(matrix_exp(angles[4] * found), values[4], rtol=0, atol=1e-8):
                return _clean(found)
        raise RepresentationError(
            f"escnn's representation {_label(representation)} of {self.fiber} has frequencies above 256: its derivative "
            "was not found"
        )


def _angle(rotation: Tensor) -> float:
    return math.atan2(float(rotation[1, 0]), float(rotation[0, 0]))


def _clean(matrices: Tensor) -> Tensor:
    """Round entries that are nearly integers, so that permutations are exact."""
    whole = matrices.round()
    return torch.where((matrices - whole).abs() < 1e-12 * max(1, matrices.shape[-1]), whole, matrices)


def _label(representation: Any) -> str:
    """Make a short name for tables and messages, since escnn's names of sums list every summand."""
    name = str(representation.name)
    return f"escnn {name}" if len(name) <= 24 else f"escnn {name[:21]}..."
