"""What can be told about one tensor of one module: how it transforms, if at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equirelax.audit.actions import Action, Atom, Explained, Seen, error_of, explain
from equirelax.audit.fit import fit


@dataclasses.dataclass(frozen=True)
class Told:
    """What is known about one tensor.

    ``kind``: ``fits`` (an action explains it), ``basis`` (one in another basis does), ``linear`` (some linear
    one does), ``other`` (explained, but not by the action declared for it), ``broken``, ``unknown``.
    """

    kind: str
    words: str
    action: Action | None = None
    relative: float = 0.0
    absolute: float = 0.0

    @property
    def explained(self) -> bool:
        """Whether a group action takes it from x to g x."""
        return self.kind in ("fits", "basis", "linear")

    @property
    def accuses(self) -> bool:
        """Whether somebody upstream is to blame for it."""
        return self.kind in ("broken", "other")


class Judge:
    """Tells how tensors transform; remembers what it has told about equal ones."""

    def __init__(self, elements: Tensor, atoms: Sequence[Atom], tolerance: float) -> None:
        self.elements, self.atoms, self.tolerance = elements, atoms, tolerance
        self.told: dict[tuple[Any, ...], Told] = {}

    def tell(self, x: list[Tensor], y: list[list[Tensor]], declared: Action | None) -> Told:
        """Args: x, the tensor at every point; y, at every element and point; declared, its action if
        known.
        """
        if any(t.shape != x[0].shape for t in [*x, *(t for row in y for t in row)]):
            return Told("unknown", "its shape depends on the input")
        seen = Seen(torch.stack(x), torch.stack([torch.stack(row) for row in y]), self.elements)
        sums = (float(seen.x.sum()), float(seen.y.sum()), float(seen.y.norm()))
        key = (seen.x.shape, *sums, declared.name if declared else None)
        if key not in self.told:
            self.told[key] = self._tell(seen, declared)
        return self.told[key]

    def _tell(self, seen: Seen, declared: Action | None) -> Told:
        if not bool(torch.isfinite(seen.y).all() and torch.isfinite(seen.x).all()):
            return Told("broken", "holds NaN or infinity", None, math.inf, math.inf)
        expected = None if declared is None else error_of(declared, seen)
        if expected is not None and expected.relative <= self.tolerance:
            return _told("fits", expected.action.name, expected)
        best = explain(seen, self.atoms, self.tolerance)
        if best.relative <= self.tolerance:
            if expected is None:
                return _told("fits", best.action.name, best)
            return _told("other", f"as {best.action.name}, though declared {expected.action.name}", expected)
        weaker = fit(seen, self.atoms, self.tolerance)
        if expected is not None:
            tail = f" but {weaker.words}" if weaker.kind == "basis" else ""
            return _told("broken", f"not as {expected.action.name}, as declared,{tail}".rstrip(","), expected)
        if weaker.kind == "basis":
            return _told("basis", f"as {weaker.words}", best)
        if weaker.kind == "linear":
            return Told("linear", weaker.words, best.action, weaker.relative, best.absolute)
        return _told("broken", f"like nothing known (closest: {best.action.name}; {weaker.words})", best)


def _told(kind: str, words: str, found: Explained) -> Told:
    return Told(kind, words, found.action, found.relative, found.absolute)
