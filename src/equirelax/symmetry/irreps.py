"""Irreducible representations of rotations and parity, in e3nn's basis and layout."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equirelax.errors import RepresentationError
from equirelax.symmetry.blocks import Block
from equirelax.symmetry.exponential import matrix_exp, rotation_vectors
from equirelax.symmetry.group import Group, constants, determinant_sign, widened
from equirelax.symmetry.lie import SE, SO, E, O, rotation_algebra
from equirelax.symmetry.representation import Representation

if TYPE_CHECKING:
    from e3nn.o3 import Irreps


class Irrep(Block):
    """The irreducible representation of degree l and parity p, of size 2l+1, in the real basis of e3nn.

    Under O(3) and E(3) an element R = +-R_0, with R_0 a rotation, acts by p^[det R < 0] D^l(R_0); under
    SO(3) and SE(3) the parity has no effect. Translations act trivially.

    Raises:
        RepresentationError: the group is not SO(3), O(3), SE(3) or E(3), l < 0, or p is not +1 or -1.
    """

    def __init__(self, group: Group, l: int, p: int) -> None:  # noqa: E741  (l is the field's name)
        if not (isinstance(group, SO | O | SE | E) and group.n == 3):
            raise RepresentationError(f"Irreps belong to SO(3), O(3), SE(3) or E(3), not to {group.name}.")
        if l < 0 or p not in (1, -1):
            raise RepresentationError(
                f"An irrep has a degree l >= 0 and a parity +1 or -1, got l={l!r}, p={p!r}."
            )
        super().__init__(group, 2 * l + 1, f"{l}{'e' if p == 1 else 'o'}")
        self.l = l
        self.p = p
        self.parity_acts = isinstance(group, O | E)
        self.trivial = l == 0 and (p == 1 or not self.parity_acts)
        self.names_group = isinstance(group, O)

    def matrix(self, g: Tensor) -> Tensor:
        linear = widened(self.group.linear_part(g))
        determinant = determinant_sign(linear)
        vectors = rotation_vectors(linear * determinant).to(torch.float64)
        turns = rotation_generators(self.l).to(g.device)
        out = matrix_exp(torch.einsum("...k,kij->...ij", vectors, turns)).to(g.dtype)
        return out * determinant.to(g.dtype) if self.p == -1 and self.parity_acts else out

    def _generators(self) -> Tensor:
        turns = rotation_generators(self.l)
        shifts = turns.new_zeros(self.group.algebra_dim - 3, self.dim, self.dim)
        return torch.cat([turns, shifts])

    def known_hom(self, other: Block) -> Tensor | None:
        if not isinstance(other, Irrep) or other.group != self.group:
            return None
        # Schur's lemma; these irreps are of real type, so between equal ones only multiples of 1 are left.
        same = self.l == other.l and (self.p == other.p or not self.parity_acts)
        if not same:
            return torch.zeros(0, other.dim, self.dim, dtype=torch.float64)
        return torch.eye(self.dim, dtype=torch.float64).unsqueeze(0) / self.dim**0.5

    def arguments(self) -> dict[str, Any]:
        return {"l": self.l, "p": self.p}


_ROTATION_GENERATORS: dict[int, Tensor] = {}


def rotation_generators(l: int) -> Tensor:  # noqa: E741
    """Compute drho^l of the rotations about x, y, z in e3nn's real basis, (3, 2l+1, 2l+1), in float64.

    e3nn computes them in the default dtype, often float32. The square of every entry is a multiple of 1/4 in
    exact arithmetic (J_x and J_y couple neighbouring m by sqrt(l(l+1) - m(m+1)) / 2, times sqrt(2) at m =
    0), so rounding that square restores the float64 value.
    """
    if l not in _ROTATION_GENERATORS and l <= 1:  # degree 1 is the vectors themselves, which need no e3nn
        with constants():
            _ROTATION_GENERATORS[l] = rotation_algebra(3) if l else torch.zeros(3, 1, 1, dtype=torch.float64)
    if l not in _ROTATION_GENERATORS:
        from e3nn import o3

        with constants():
            given = o3.so3_generators(l) if hasattr(o3, "so3_generators") else differences_of_turns(l)
            rounded = given.to(torch.float64)
            _ROTATION_GENERATORS[l] = rounded.sign() * (4 * rounded.square()).round().sqrt() / 2
    return _ROTATION_GENERATORS[l]


def differences_of_turns(l: int, angle: float = 1e-3) -> Tensor:  # noqa: E741
    """Approximate `rotation_generators` by central differences, for e3nn 0.4, which has no generators."""
    from e3nn import o3

    ahead, back = torch.tensor(angle, dtype=torch.float64), torch.tensor(-angle, dtype=torch.float64)
    irrep = o3.Irrep(l, 1)
    pairs = [
        (irrep.D_from_matrix(turn(ahead)), irrep.D_from_matrix(turn(back)))
        for turn in (o3.matrix_x, o3.matrix_y, o3.matrix_z)
    ]
    found = torch.stack([(a.to(torch.float64) - b.to(torch.float64)) / (2 * angle) for a, b in pairs])
    return torch.where(found.abs() < 0.1, 0.0, found)  # the smallest nonzero entry is 1/2


def is_irreps(value: Any) -> bool:
    """Whether a value is e3nn's `Irreps`, without importing e3nn."""
    return any(cls.__name__ == "Irreps" for cls in type(value).__mro__)


def from_irreps(irreps: str | Irreps, group: Group | None = None) -> Representation:
    """Build the representation of `irreps` such as `32x0e+32x1o`; degrees above 1 need e3nn.

    Args:
        irreps: terms `<multiplicity>x<degree><parity>` joined by `+`, or e3nn's `Irreps`. The parity is `e` (even), `o`
            (odd) or `y` (that of the spherical harmonics, (-1)^degree). A missing multiplicity is 1.
        group: O(3) by default, SO(3), SE(3) or E(3). Parity has no effect under SO(3) and SE(3), and translations act
            trivially.

    Raises:
        RepresentationError: the irreps cannot be read, the group has no such irreps, or e3nn is missing for a degree
            above 1.
    """
    group = O(3) if group is None else group
    blocks = [(multiplicity, Irrep(group, degree, parity)) for multiplicity, degree, parity in _terms(irreps)]
    if any(multiplicity and block.l > 1 for multiplicity, block in blocks) and find_spec("e3nn") is None:
        raise RepresentationError(
            f"The irreps {str(irreps)!r} have a degree above 1, which needs e3nn: pip install e3nn."
        )
    return Representation(group, blocks)


_TERM = re.compile(r"(?:(\d+)\s*x\s*)?(\d+)\s*([eoy])")


def _terms(irreps: str | Irreps) -> list[tuple[int, int, int]]:
    """Read (multiplicity, degree, parity) of every term."""
    text = str(irreps)
    found = [] if not text.strip() else [_TERM.fullmatch(term.strip()) for term in text.split("+")]
    terms = []
    for match in found:
        if match is None:
            raise RepresentationError(f"The irreps {text!r} cannot be read: write them like '32x0e+16x1o'.")
        multiplicity, degree, parity = match.groups()
        even = parity == "e" or (parity == "y" and int(degree) % 2 == 0)
        terms.append((1 if multiplicity is None else int(multiplicity), int(degree), 1 if even else -1))
    return terms
