"""Weaker explanations of a feature that transforms like no known block: another basis, or some linear map."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from equirelax.auditing.actions import Atom, Seen

MAX_FIT = 256  # largest axis on which a free linear map is fitted


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted action.

    Attributes:
        kind: ``basis`` (a known block in another basis), ``linear`` (some linear map for every g), ``none``
            (there is no linear action on any axis that could be tested), ``untested`` (too few rows to tell).
        words: for the reader.
        relative: the residual of the fit, relative to the feature.
    """

    kind: str
    words: str
    relative: float


def fit(seen: Seen, atoms: Sequence[Atom], tolerance: float) -> Fit:
    """The strongest of the weaker explanations that holds within ``tolerance``."""
    axes = range(seen.x.dim() - 2, -1, -1)
    shape = seen.x.shape[1:]
    for axis in axes:
        for atom in atoms:
            if 1 < atom.dim <= 8 and shape[axis] % atom.dim == 0:
                found = _basis(seen, atom, axis, tolerance)
                if found is not None:
                    return found
    tested = [residual for axis in axes if (residual := _linear(seen, axis)) is not None]
    if not tested:
        return Fit("untested", "too few rows to look for a linear action", float("nan"))
    best = min(tested)
    if best <= tolerance:
        return Fit("linear", "some linear action that is none of the known ones", best)
    return Fit("none", f"no linear action either (best residual {best:.1e})", best)


def _rows(seen: Seen, axis: int, width: int) -> tuple[Tensor, Tensor]:
    """x (rows, width) and y (G, rows, width): the axis cut into pieces of ``width``."""
    x = seen.x.movedim(axis + 1, -1).reshape(-1, width)
    y = seen.y.movedim(axis + 2, -1).reshape(len(seen.elements), -1, width)
    return x, y


def _solve(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Least squares ``x T_g = y_g`` with one T for each g: (G, width, width), and the worst relative
    residual.
    """
    maps = torch.linalg.pinv(x) @ y
    gap = (x @ maps - y).flatten(1).norm(dim=1)
    scale = torch.maximum(y.flatten(1).norm(dim=1), x.norm()).clamp_min(1e-300)
    return maps, float((gap / scale).max())


def _basis(seen: Seen, atom: Atom, axis: int, tolerance: float) -> Fit | None:
    """Whether the axis holds copies of ``P atom P^-1`` with one P for all of them and for every g."""
    x, y = _rows(seen, axis, atom.dim)
    if len(x) < 2 * atom.dim or int(torch.linalg.matrix_rank(x)) < atom.dim:
        return None
    maps, residual = _solve(x, y)
    if residual > tolerance:
        return None
    eye = torch.eye(atom.dim, dtype=x.dtype, device=x.device)
    # Rows are multiplied from the right, so T = maps^T; T P - P M = 0 for every g, with P flattened row by
    # row.
    equations = torch.cat(
        [
            torch.kron(t.T.contiguous(), eye) - torch.kron(eye, atom.matrix(g).to(x).T.contiguous())
            for t, g in zip(maps, seen.elements, strict=True)
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
    """A signed permutation as the order of the axes, anything else by its entries."""
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
        rows = "; ".join(" ".join(f"{float(v) + 0.0:.2f}" for v in row) for row in change)
        return f"another basis: P = [{rows}]"
    return "another basis"


def _linear(seen: Seen, axis: int) -> float | None:
    """Residual of a free linear map along the axis; ``None`` where there are too few independent rows to mean
    anything.
    """
    width = seen.x.shape[axis + 1]
    if not 1 < width <= MAX_FIT:
        return None
    x, y = _rows(seen, axis, width)
    if len(x) > 8 * width:
        pick = torch.linspace(0, len(x) - 1, 8 * width).long()
        x, y = x[pick], y[:, pick]
    # Rows that repeat (a node's features on each of its edges) are fitted as one: they must not count twice.
    distinct = len(torch.unique((x / x.abs().max().clamp_min(1e-300) * 1e9).round(), dim=0))
    if distinct < 2 * int(torch.linalg.matrix_rank(x)) or distinct < 4:
        return None
    return _solve(x, y)[1]
