"""Describe group elements and generators, and find out whether a group acts through the representations of another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from equirelax.symmetry import Group, Lorentz, MatrixGroup

_AXES = "xyzw"
_TOLERANCE = 1e-6


def describe(group: Group, element: Tensor) -> str:
    """Describe an element, e.g. ``rotation by 37.2 deg about (0.10, -0.31, 0.95), then translation by (1.20, 0.00, -0.43)``.

    Args:
        group: The element's group.
        element: Its matrix in the defining representation, (n, n).
    """
    matrix = element.detach().double().cpu()
    linear, shift = group.linear_part(matrix), group.translation_part(matrix)
    words = _lorentz(linear) if isinstance(group, Lorentz) else _linear(linear)
    if shift is None or float(shift.norm()) < _TOLERANCE:
        return words
    moved = f"translation by {_vector(shift)}"
    return moved if words == "identity" else f"{words}, then {moved}"


def component(group: Group, element: Tensor) -> str:
    """Name the component of an element by the sign of its determinant: ``proper`` or ``with reflection``."""
    linear = group.linear_part(element.detach().double().cpu())
    return "with reflection" if float(torch.linalg.det(linear)) < 0 else "proper"


def describe_generator(group: Group, generator: Tensor, index: int) -> str:
    """Describe an element of the Lie algebra, e.g. ``rotation about z``, ``translation z``, ``boost tx``."""
    matrix = generator.detach().double().cpu()
    linear, shift = group.linear_part(matrix), group.translation_part(matrix)
    n = linear.shape[0]
    if shift is not None and float(linear.abs().max()) < _TOLERANCE:
        return f"translation {_axis_name(int(shift.abs().argmax()), n)}"
    entries = [(i, j) for i in range(n) for j in range(i + 1, n) if abs(float(linear[i, j])) > _TOLERANCE]
    diagonal = linear.diagonal()
    if not entries and float((diagonal - diagonal[0]).abs().max()) < _TOLERANCE:
        return "scaling"
    if len(entries) == 1 and float(diagonal.abs().max()) < _TOLERANCE:
        i, j = entries[0]
        names = _spacetime if isinstance(group, Lorentz) else _axis_name
        plane = names(i, n) + names(j, n)
        if torch.allclose(linear, -linear.T, atol=_TOLERANCE):
            if n == 3:
                return f"rotation about {_axis_name(3 - i - j, n)}"
            return f"rotation {plane}"
        if torch.allclose(linear, linear.T, atol=_TOLERANCE):
            return f"boost {plane}"
    return f"generator {index}"


def _linear(m: Tensor) -> str:
    n = m.shape[0]
    eye = torch.eye(n, dtype=m.dtype, device=m.device)
    if torch.allclose(m, eye, atol=_TOLERANCE):
        return "identity"
    if torch.allclose(m, m[0, 0] * eye, atol=_TOLERANCE) and not math.isclose(
        abs(float(m[0, 0])), 1, abs_tol=_TOLERANCE
    ):
        return f"scaling by {float(m[0, 0]):.4g}"
    if torch.allclose(m @ m.T, eye, atol=_TOLERANCE):
        if n == 2:
            return _planar(m)
        if n == 3:
            return _spatial(m)
        if bool(((m - m.round()).abs() < _TOLERANCE).all()) and bool((m.round() >= 0).all()):
            return _permutation(m)
        return "rotation" if float(torch.linalg.det(m)) > 0 else "rotation with reflection"
    return f"matrix with determinant {float(torch.linalg.det(m)):.3g}"


def _planar(m: Tensor) -> str:
    angle = math.degrees(math.atan2(float(m[1, 0]), float(m[0, 0])))
    if float(torch.linalg.det(m)) > 0:
        return f"rotation by {angle:.1f} deg"
    return f"reflection across the line at {angle / 2:.1f} deg"


def _spatial(m: Tensor) -> str:
    """Describe a rotation by angle and axis; an improper element as a mirror, or as the rotation -m and the inversion."""
    improper = float(torch.linalg.det(m)) < 0
    r = -m if improper else m
    angle = math.acos(max(-1.0, min(1.0, (float(r.trace()) - 1) / 2)))
    if improper and angle < _TOLERANCE:
        return "inversion"
    # The axis is the eigenvector of eigenvalue 1, the null space of r - 1. The antisymmetric part fixes its sign.
    axis = torch.linalg.svd(r - torch.eye(3, dtype=m.dtype, device=m.device)).Vh[-1]
    twist = torch.stack((r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]))
    if float(axis @ twist) < 0:
        axis = -axis
    if improper and math.isclose(angle, math.pi, abs_tol=1e-5):
        return f"reflection in the plane normal to {_vector(axis)}"
    words = f"rotation by {math.degrees(angle):.1f} deg about {_vector(axis)}"
    return f"{words} with reflection (inversion)" if improper else words


def _permutation(m: Tensor) -> str:
    """Write a permutation in cycle notation. Column j of the matrix says where j goes."""
    target = m.argmax(dim=0).tolist()
    left, cycles = set(range(len(target))), []
    while left:
        start = current = min(left)
        cycle = []
        while current in left:
            left.remove(current)
            cycle.append(current)
            current = target[current]
        if len(cycle) > 1:
            cycles.append((start, cycle))
    return "permutation " + "".join("(" + " ".join(map(str, cycle)) + ")" for _, cycle in cycles)


def _lorentz(m: Tensor) -> str:
    if float(m[1:, 0].norm()) < _TOLERANCE:
        return _linear(m[1:, 1:])
    rapidity = math.acosh(max(1.0, float(m[0, 0])))
    boost = f"boost of rapidity {rapidity:.2f} along {_vector(m[1:, 0] / m[1:, 0].norm())}"
    # m = boost @ rotation; the image of the time axis determines the boost.
    v = m[1:, 0]
    pure = torch.eye(4, dtype=m.dtype, device=m.device)
    pure[0, 0], pure[0, 1:], pure[1:, 0] = m[0, 0], v, v
    pure[1:, 1:] += torch.outer(v, v) / (1 + m[0, 0])
    turn = _linear((torch.linalg.inv(pure) @ m)[1:, 1:])
    return boost if turn == "identity" else f"{turn}, then {boost}"


def _vector(v: Tensor) -> str:
    return "(" + ", ".join(f"{float(x) + 0.0:.2f}" for x in v) + ")"


def _axis_name(i: int, n: int) -> str:
    return _AXES[i] if n <= 4 else str(i)


def _spacetime(i: int, n: int) -> str:
    return "txyz"[i]


CLOSE = 1e-6


def acts_through(group: Group, other: Group) -> bool:
    """Whether the elements of ``group``, or their linear parts, are elements of ``other``.

    This is checked on a few sampled elements and on the discrete generators. If ``other`` is given by generators only, membership
    cannot be decided. Then the Lie algebra of ``group`` must lie in the span of that of ``other``, and each discrete
    generator must be one of ``other``'s.
    """
    if other == group:
        return True
    linear = other.dim != group.dim
    if linear and group.linear_dim != other.dim:
        return False

    def part(elements: Tensor) -> Tensor:
        return group.linear_part(elements) if linear else elements

    if _decides(other):
        drawn = group.sample(8, generator=torch.Generator().manual_seed(1))
        return bool(other.contains(part(torch.cat((drawn, group.discrete()))), atol=CLOSE).all())
    inside = _in_span(part(group.algebra()).flatten(1), other.algebra().flatten(1))
    known = torch.cat((other.identity()[None], other.discrete())).flatten(1)
    wanted = part(group.discrete() if group.order is None else group.elements()).flatten(1)
    return inside and bool((torch.cdist(wanted, known).amin(dim=1) < CLOSE).all() if len(wanted) else True)


def contains(group: Group, subgroup: Group) -> bool:
    """Whether the elements of ``subgroup`` themselves are elements of ``group``; see `acts_through`."""
    return group.dim == subgroup.dim and acts_through(subgroup, group)


def _decides(group: Group) -> bool:
    """Whether the group can decide which matrices are its elements."""
    return not isinstance(group, MatrixGroup) or group.order is not None


def _in_span(vectors: Tensor, basis: Tensor) -> bool:
    if not len(vectors):
        return True
    rest = vectors - vectors @ torch.linalg.pinv(basis) @ basis if len(basis) else vectors
    return bool(rest.abs().max() < CLOSE)
