"""What can be told about one tensor of one module: how it transforms, if at all."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from equirelax.auditing import planes
from equirelax.auditing.actions import INVARIANT, Action, Atom, Explained, Seen, error_of, explain, likeliest
from equirelax.auditing.fit import Fit, fit
from equirelax.auditing.norms import largest, largest_entry

SMALLEST, LARGEST = 1e-100, 1e100


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
    """Tells how tensors transform; remembers what it has told about equal ones.

    Args:
        fields: whether features may be pictures, whose grid moves (``planes.py``).
    """

    def __init__(
        self, elements: Tensor, atoms: Sequence[Atom], tolerance: float, fields: bool = False
    ) -> None:
        self.elements, self.atoms, self.tolerance = elements, atoms, tolerance
        self.fields = fields and planes.on_grid(elements)
        self.told: dict[tuple[Any, ...], Told] = {}
        # What is declared for a feature where it is made counts wherever it arrives.
        self.broken: dict[tuple[Any, ...], Told] = {}
        # How the last pictures of so many axes and channels moved: the best guess for broken ones like them.
        self.recent: dict[tuple[int, int], Action] = {}

    def tell(self, x: list[Tensor], y: list[list[Tensor]], declared: Action | None) -> Told:
        """Args: x, the tensor at every point; y, at every element and point; declared, its action if
        known.
        """
        if any(t.shape != x[0].shape for t in [*x, *(t for row in y for t in row)]):
            return Told("unknown", "its shape depends on the input")
        seen = Seen(torch.stack(x), torch.stack([torch.stack(row) for row in y]), self.elements)
        # of every entry in its place: sums and norms would not tell a tensor from one with its axes swapped
        content = blake2b(seen.x.cpu().numpy().tobytes() + seen.y.cpu().numpy().tobytes()).digest()
        feature = (seen.x.shape, content)
        if declared is None and feature in self.broken:
            return self.broken[feature]
        key = (*feature, declared.name if declared else None)
        if key not in self.told:
            self.told[key] = self._tell(seen, declared)
            self._remember(seen, self.told[key])
            if declared is not None and self.told[key].kind == "broken":
                self.broken.setdefault(feature, self.told[key])
        return self.told[key]

    def _tell(self, seen: Seen, declared: Action | None) -> Told:
        if not bool(torch.isfinite(seen.y).all() and torch.isfinite(seen.x).all()):
            return Told("broken", "holds NaN or infinity", None, math.inf, math.inf)
        size = largest((largest_entry(seen.x), largest_entry(seen.y)))
        if size and not SMALLEST < size < LARGEST:  # squares would underflow or overflow
            told = self._tell(Seen(seen.x / size, seen.y / size, seen.elements), declared)
            return dataclasses.replace(told, absolute=told.absolute * size)
        lopsided = planes.lopsided(seen) if self.fields else ""
        expected = None if declared is None or lopsided else error_of(declared, seen)
        if expected is not None and expected.relative <= self.tolerance:
            return _told("fits", expected.action.name, expected)
        best = self._explain(seen)
        if best.relative <= self.tolerance:
            if expected is None:
                return _told("fits", best.action.name, best)
            return _told("other", f"as {best.action.name}, though declared {expected.action.name}", expected)
        if lopsided:
            return Told("broken", lopsided, None, best.relative, best.absolute)
        weaker = self._fit(seen)
        if expected is not None:
            tail = f" but {weaker.words}" if weaker.kind == "basis" else ""
            return _told("broken", f"not as {expected.action.name}, as declared,{tail}".rstrip(","), expected)
        if weaker.kind == "basis":
            return _told("basis", f"as {weaker.words}", best)
        if weaker.kind == "linear":
            return Told("linear", weaker.words, best.action, weaker.relative, best.absolute)
        return _told("broken", f"like nothing known (closest: {best.action.name}; {weaker.words})", best)

    def _remember(self, seen: Seen, told: Told) -> None:
        action = told.action
        if action is not None and action.channels and (told.kind == "fits" or "declared" in told.words):
            self.recent[seen.x.dim(), action.channels] = action

    def _explain(self, seen: Seen) -> Explained:
        if not self.fields:
            return explain(seen, self.atoms, self.tolerance)
        found = self._explain_field(seen)
        recent = self.recent.get((seen.x.dim(), seen.x.shape[-3])) if seen.x.dim() >= 4 else None
        if found.relative <= self.tolerance or recent is None or planes.lopsided(seen):
            return found
        return error_of(recent, seen)

    def _explain_field(self, seen: Seen) -> Explained:
        large = planes.is_large_grid(seen.x.shape[1:])
        # Called again on a picture that does not move, any module would pass.
        still = dataclasses.replace(INVARIANT, odds=planes.STILL) if large else INVARIANT
        on_grids = likeliest(
            seen, itertools.chain((still,), planes.candidates(seen, self.atoms)), self.tolerance
        )
        if on_grids.relative <= self.tolerance or large:
            return on_grids
        off = explain(seen, self.atoms, self.tolerance)
        return min(off, on_grids, key=lambda found: found.relative * found.action.odds)

    def _fit(self, seen: Seen) -> Fit:
        rows = planes.rows_of(seen) if self.fields else None
        if rows is None:
            return fit(seen, self.atoms, self.tolerance)
        found = fit(rows, self.atoms, self.tolerance)
        return dataclasses.replace(found, words=f"{found.words}, once its grid is moved back")


def _told(kind: str, words: str, found: Explained) -> Told:
    return Told(kind, words, found.action, found.relative, found.absolute)
