"""Classify how each tensor of each module transforms, if at all.

If none of the candidate actions (``actions.py``) fits, two weaker explanations are tried: vectors *in another basis*
(``P rho(g) P^-1`` with a fixed P, as from a swapped axis), and *some* linear map for every g (by least squares, which says
nothing if there are too few rows).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from equirelax.auditing.actions import (
    INVARIANT,
    STILL,
    Action,
    Atom,
    Explanation,
    Feature,
    error_of,
    explain,
    field_candidates,
    grid_problem,
    is_large_grid,
    most_likely,
    on_grid,
    pixel_rows,
)
from equirelax.auditing.norms import largest, largest_entry

MAX_FIT = 256
"""Largest length of an axis on which a free linear map is fitted."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted action.

    Attributes:
        kind: ``basis`` (a known block in another basis), ``linear`` (some linear map for every g), ``none`` (no linear action
            on any axis that could be tested) or ``untested`` (too few rows).
        words: A readable description of the same.
        relative: Residual of the fit relative to the feature.
    """

    kind: str
    words: str
    relative: float


def fit(feature: Feature, atoms: Sequence[Atom], tolerance: float) -> Fit:
    """Return the strongest of the weaker explanations that holds within ``tolerance``."""
    axes = range(feature.x.dim() - 2, -1, -1)
    shape = feature.x.shape[1:]
    for axis in axes:
        for atom in atoms:
            if 1 < atom.dim <= 8 and shape[axis] % atom.dim == 0:
                found = _basis(feature, atom, axis, tolerance)
                if found is not None:
                    return found
    tested = [residual for axis in axes if (residual := _linear(feature, axis)) is not None]
    if not tested:
        return Fit("untested", "too few rows to look for a linear action", float("nan"))
    best = min(tested)
    if best <= tolerance:
        return Fit("linear", "some linear action that is none of the known ones", best)
    return Fit("none", f"no linear action either (best residual {best:.1e})", best)


def _rows(feature: Feature, axis: int, width: int) -> tuple[Tensor, Tensor]:
    """Cut the axis into pieces of ``width``: x (rows, width) and y (G, rows, width)."""
    x = feature.x.movedim(axis + 1, -1).reshape(-1, width)
    y = feature.y.movedim(axis + 2, -1).reshape(len(feature.elements), -1, width)
    return x, y


def _solve(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Solve ``x T_g = y_g`` by least squares for every g: T (G, width, width), and the worst relative residual."""
    maps = torch.linalg.pinv(x) @ y
    gap = (x @ maps - y).flatten(1).norm(dim=1)
    scale = torch.maximum(y.flatten(1).norm(dim=1), x.norm()).clamp_min(1e-300)
    return maps, float((gap / scale).max())


def _basis(feature: Feature, atom: Atom, axis: int, tolerance: float) -> Fit | None:
    """Test whether the axis holds copies of ``P atom P^-1``, with one P for all copies and every g."""
    x, y = _rows(feature, axis, atom.dim)
    if len(x) < 2 * atom.dim or int(torch.linalg.matrix_rank(x)) < atom.dim:
        return None
    maps, residual = _solve(x, y)
    if residual > tolerance:
        return None
    eye = torch.eye(atom.dim, dtype=x.dtype, device=x.device)
    # Rows are multiplied from the right, so T = maps^T. T P - P M = 0 for every g, with P flattened row by row.
    equations = torch.cat(
        [
            torch.kron(t.T.contiguous(), eye) - torch.kron(eye, atom.matrix(g).to(x).T.contiguous())
            for t, g in zip(maps, feature.elements, strict=True)
        ]
    )
    _, values, vh = torch.linalg.svd(equations)
    if float(values[-1]) > 100 * max(tolerance, 1e-9):
        return None
    change = vh[-1].reshape(atom.dim, atom.dim)
    change = change / change.flatten()[change.abs().argmax()]
    if float(torch.linalg.det(change).abs()) < 1e-6:
        return None
    unique = len(values) < 2 or float(values[-2]) > 1e-6
    how = _change_words(change) if unique else "another basis"
    return Fit("basis", f"{atom.name} in {how}", residual)


def _change_words(change: Tensor) -> str:
    """Describe a change of basis: a signed permutation as the order of the axes, anything else by its entries."""
    size = len(change)
    rounded = change.round()
    if torch.allclose(change, rounded, atol=1e-5) and bool((rounded.abs().sum(dim=0) == 1).all()):
        if size <= 4:
            names = "xyz" if size <= 3 else "txyz"
            order = [int(row.abs().argmax()) for row in rounded]
            signs = ["-" if float(row.sum()) < 0 else "" for row in rounded]
            return (
                f"another basis: axes ({', '.join(s + names[k] for s, k in zip(signs, order, strict=True))})"
            )
        return "another basis: a signed permutation of the axes"
    if size <= 3:
        rows = "; ".join(" ".join(f"{round(float(v), 2) + 0.0:.2f}" for v in row) for row in change)
        return f"another basis: P = [{rows}]"
    return "another basis"


def _linear(feature: Feature, axis: int) -> float | None:
    """The residual of a free linear map along the axis; ``None`` if too few rows are independent for it to be meaningful."""
    width = feature.x.shape[axis + 1]
    if not 1 < width <= MAX_FIT:
        return None
    x, y = _rows(feature, axis, width)
    if len(x) > 8 * width:
        pick = torch.linspace(0, len(x) - 1, 8 * width).long()
        x, y = x[pick], y[:, pick]
    # Rows that repeat (a node's features on each of its edges) count once.
    distinct = len(torch.unique((x / x.abs().max().clamp_min(1e-300) * 1e9).round(), dim=0))
    if distinct < 2 * int(torch.linalg.matrix_rank(x)) or distinct < 4:
        return None
    return _solve(x, y)[1]


SMALLEST, LARGEST = 1e-100, 1e100
"""Entries outside this range are scaled first: their squares would underflow or overflow."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How one tensor transforms.

    Attributes:
        kind: ``fits`` (an action explains it), ``basis`` (an action in another basis does), ``linear`` (some linear action
            does), ``other`` (an action explains it, but not the one declared for it), ``broken`` or ``unknown``.
        words: A readable description of the same.
        action: The action that explains it, or the closest one.
        relative: Its relative error.
        absolute: Its largest absolute error.
    """

    kind: str
    words: str
    action: Action | None = None
    relative: float = 0.0
    absolute: float = 0.0

    @property
    def explained(self) -> bool:
        """Whether a group action maps its value on x to its value on g x."""
        return self.kind in ("fits", "basis", "linear")

    @property
    def is_break(self) -> bool:
        """Whether the module that made it, or an earlier one, breaks equivariance."""
        return self.kind in ("broken", "other")


class FeatureClassifier:
    """Decides how tensors transform, only once for equal tensors.

    Args:
        elements: The group elements g, (G, n, n).
        atoms: The blocks that are tried.
        tolerance: The relative error up to which an action explains a tensor.
        fields: Whether features may be fields, whose grid moves with the group.
    """

    def __init__(
        self, elements: Tensor, atoms: Sequence[Atom], tolerance: float, fields: bool = False
    ) -> None:
        self.elements, self.atoms, self.tolerance = elements, atoms, tolerance
        self.fields = fields and on_grid(elements)
        self.verdicts: dict[tuple[Any, ...], Verdict] = {}
        # A feature that breaks its declaration as an output counts as broken wherever it is an input.
        self.broken: dict[tuple[Any, ...], Verdict] = {}
        # How the last fields with the same number of axes and channels moved, the best guess for broken ones like them.
        self.recent: dict[tuple[int, int], Action] = {}

    def classify(self, x: list[Tensor], y: list[list[Tensor]], declared: Action | None) -> Verdict:
        """Classify one tensor.

        Args:
            x: The tensor at every point.
            y: The tensor at every element and point.
            declared: The action that is declared for it, if any.
        """
        if any(t.shape != x[0].shape for t in [*x, *(t for row in y for t in row)]):
            return Verdict("unknown", "its shape depends on the input")
        feature = Feature(torch.stack(x), torch.stack([torch.stack(row) for row in y]), self.elements)
        # hash all entries in order, since a swap of axes does not change sums and norms
        content = blake2b(feature.x.cpu().numpy().tobytes() + feature.y.cpu().numpy().tobytes()).digest()
        identity = (feature.x.shape, content)
        if declared is None and identity in self.broken:
            return self.broken[identity]
        key = (*identity, declared.name if declared else None)
        if key not in self.verdicts:
            self.verdicts[key] = self._classify(feature, declared)
            self._remember(feature, self.verdicts[key])
            if declared is not None and self.verdicts[key].kind == "broken":
                self.broken.setdefault(identity, self.verdicts[key])
        return self.verdicts[key]

    def _classify(self, feature: Feature, declared: Action | None) -> Verdict:
        if not bool(torch.isfinite(feature.y).all() and torch.isfinite(feature.x).all()):
            return Verdict("broken", "holds NaN or infinity", None, math.inf, math.inf)
        size = largest((largest_entry(feature.x), largest_entry(feature.y)))
        if size and not SMALLEST < size < LARGEST:
            verdict = self._classify(Feature(feature.x / size, feature.y / size, feature.elements), declared)
            return dataclasses.replace(verdict, absolute=verdict.absolute * size)
        problem = grid_problem(feature) if self.fields else ""
        expected = None if declared is None or problem else error_of(declared, feature)
        if expected is not None and expected.relative <= self.tolerance:
            return _verdict("fits", expected.action.name, expected)
        best = self._explain(feature)
        if best.relative <= self.tolerance:
            if expected is None:
                return _verdict("fits", best.action.name, best)
            return _verdict(
                "other", f"as {best.action.name}, though declared {expected.action.name}", expected
            )
        if problem:
            return Verdict("broken", problem, None, best.relative, best.absolute)
        weaker = self._fit(feature)
        if expected is not None:
            tail = f", but as {weaker.words}" if weaker.kind == "basis" else ""
            return _verdict("broken", f"otherwise than declared ({expected.action.name}){tail}", expected)
        if weaker.kind == "basis":
            return _verdict("basis", f"as {weaker.words}", best)
        if weaker.kind == "linear":
            return Verdict("linear", weaker.words, best.action, weaker.relative, best.absolute)
        return _verdict("broken", f"like nothing known (closest: {best.action.name}; {weaker.words})", best)

    def _remember(self, feature: Feature, verdict: Verdict) -> None:
        action = verdict.action
        if action is not None and action.channels and (verdict.kind == "fits" or "declared" in verdict.words):
            self.recent[feature.x.dim(), action.channels] = action

    def _explain(self, feature: Feature) -> Explanation:
        if not self.fields:
            return explain(feature, self.atoms, self.tolerance)
        found = self._explain_field(feature)
        recent = self.recent.get((feature.x.dim(), feature.x.shape[-3])) if feature.x.dim() >= 4 else None
        if found.relative <= self.tolerance or recent is None or grid_problem(feature):
            return found
        return error_of(recent, feature)

    def _explain_field(self, feature: Feature) -> Explanation:
        large = is_large_grid(feature.x.shape[1:])
        # Any module would pass if it were called again on a field that does not move.
        still = dataclasses.replace(INVARIANT, odds=STILL) if large else INVARIANT
        on_grids = most_likely(
            feature, itertools.chain((still,), field_candidates(feature, self.atoms)), self.tolerance
        )
        if on_grids.relative <= self.tolerance or large:
            return on_grids
        off = explain(feature, self.atoms, self.tolerance)
        return min(off, on_grids, key=lambda found: found.relative * found.action.odds)

    def _fit(self, feature: Feature) -> Fit:
        rows = pixel_rows(feature) if self.fields else None
        if rows is None:
            return fit(feature, self.atoms, self.tolerance)
        found = fit(rows, self.atoms, self.tolerance)
        return dataclasses.replace(found, words=f"{found.words}, once its grid is moved back")


def _verdict(kind: str, words: str, found: Explanation) -> Verdict:
    return Verdict(kind, words, found.action, found.relative, found.absolute)
