"""Positions in a sample: how large they are, how far apart, and what that means for translations and for precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from equirelax.auditing.norms import largest_entry
from equirelax.auditing.tree import Leaf, leaves
from equirelax.symmetry import Group, On, TensorAction

FAR = 100.0
"""Points count as far from the origin from so many times their spread on."""


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """The positions of a sample.

    Attributes:
        largest: the largest |coordinate|; 0 where nothing is a position.
        spread: the largest |coordinate| once the mean of the points is taken away.
    """

    largest: float
    spread: float


def coordinates(sample: Any, in_rep: Any) -> Coordinates:
    """The positions of a sample, over all of its tensors."""
    points = [p for leaf in leaves(sample, in_rep, "input") for p in _positions(leaf.value, leaf.action)]
    return Coordinates(
        max((largest_entry(p) for p in points), default=0.0),
        max((largest_entry(p - p.mean(dim=0)) for p in points), default=0.0),
    )


def with_translations(group: Group, elements: Tensor, scale: float) -> Tensor:
    """Elements (..., n+1, n+1) of SE(n) or E(n) with their translations times `scale`; of other groups as they are."""
    n = group.linear_dim
    if group.dim == n or scale in (0.0, 1.0):
        return elements
    scaled = elements.clone()
    scaled[..., :n, n] *= scale
    return scaled


def size_of_positions(value: Tensor, action: TensorAction | None) -> float | None:
    """Frobenius norm of a tensor whose positions are taken from their mean; None where it holds none."""
    points = list(_positions(value, action))
    if not points or not isinstance(action, On) or not isinstance(action.axis, int):
        return None
    rest = value.detach().double().movedim(action.axis, -1).clone()
    rep = action.representation
    for (copies, block), part in zip(rep.blocks, rep.slices(), strict=True):
        if not block.linear:
            split = rest[..., part].unflatten(-1, (copies, block.dim))
            mean = split.reshape(-1, block.dim).mean(dim=0)
            rest[..., part] = (split - mean).flatten(-2)
    size = largest_entry(rest)
    return size * float((rest / size).norm()) if size else 0.0


def far_away(sample: Any, in_rep: Any) -> list[tuple[str, float, float]]:
    """(path, distance of the mean from the origin, spread) of what moves and lies far from the origin."""
    found = []
    for leaf in leaves(sample, in_rep, "input"):
        for points in _points(leaf):
            middle = points.mean(dim=0)
            away, spread = largest_entry(middle), largest_entry(points - middle)
            if len(points) > 1 and away > FAR * spread > 0:
                found.append((leaf.path, away, spread))
    return found


def _points(leaf: Leaf) -> Iterator[Tensor]:
    """The rows (N, d) of every block of a leaf that may hold points: positions and vectors."""
    action = leaf.action
    if not leaf.measurable or not isinstance(action, On) or not isinstance(action.axis, int):
        return
    rows = leaf.value.detach().double().movedim(action.axis, -1)
    rep = action.representation
    for (copies, block), part in zip(rep.blocks, rep.slices(), strict=True):
        if block.dim == action.group.linear_dim and not block.trivial:
            yield rows[..., part].reshape(-1, copies, block.dim).flatten(0, 1)


def _positions(value: Tensor, action: TensorAction | None) -> Iterator[Tensor]:
    """The positions (N, n) in a tensor."""
    if action is None or action.representation.linear or not isinstance(action, On):
        return
    if not isinstance(action.axis, int) or not value.is_floating_point() or not value.numel():
        return
    rows = value.detach().double().movedim(action.axis, -1)
    rep = action.representation
    for (copies, block), part in zip(rep.blocks, rep.slices(), strict=True):
        if not block.linear:
            yield rows[..., part].reshape(-1, copies, block.dim).flatten(0, 1)
